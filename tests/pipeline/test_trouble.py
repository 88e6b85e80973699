"""What must not end a training, and what must: a full disk, a slow file system, a long look at the samples."""

import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tests.pipeline.test_trainer as trainer_tests
from pipeline import checkpoint, heartbeat, runs
from pipeline.attempt import Attempt
from pipeline.config import ModelSection, parse_config
from pipeline.control import Stop, StopFlag
from pipeline.distributed import make_fabric
from pipeline.errors import RunFailed
from pipeline.files import append_line
from pipeline.manifest import read_manifest
from pipeline.runs import RunFolder
from pipeline.trainer import Trainer
from pipeline.watchdog import EXIT_HUNG
from tests.pipeline.ranks import run_ranks
from tests.pipeline.shard_factory import write_dataset

lab = trainer_tests.lab
Line = trainer_tests.Line


def no_room(path, *_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def no_room_for(*events):
    def append(path, tree, **kwargs):
        if tree["event"] in events:
            no_room(path)
        append_line(path, tree, **kwargs)

    return append


class LongSample(Line):
    """Samples for longer than a hang, and than a gradient's collective waits."""

    def sample(self, batch, folder, step):
        time.sleep(8 if step == 2 else 0)
        (folder / "made").touch()


class SlowLine(Line):
    """Each step takes a moment."""

    def training_step(self, batch, step):
        time.sleep(0.01)
        return super().training_step(batch, step)


def test_a_disk_that_fills_while_it_trains_costs_the_heartbeat_and_is_told_once(lab, monkeypatch, capsys):
    run, trainer = lab(kind=SlowLine)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(runs, "write_json", no_room)
    assert trainer.fit() is Stop.NO
    assert capsys.readouterr().err.count("heartbeat.json cannot be written (No space left on device)") == 1
    assert run.steps()[-1] == 20


def test_an_event_that_finds_no_room_is_said_and_training_goes_on(lab, monkeypatch, capsys):
    _, trainer = lab()
    monkeypatch.setattr(runs, "append_line", no_room_for("first_step", "end"))
    assert trainer.fit() is Stop.NO
    told = capsys.readouterr().err
    assert "so it lacks: first_step" in told and "so it lacks: end (attempt 1, reason complete, step 20" in told


def test_what_later_attempts_go_by_is_written_down_or_the_run_stops(lab, monkeypatch):
    _, trainer = lab()
    monkeypatch.setattr(runs, "append_line", no_room)
    with pytest.raises(RunFailed, match=r"history\.jsonl cannot be written .*is not begun; make room"):
        trainer.fit()
    monkeypatch.undo()
    _, trainer = lab("b", poison=7)
    monkeypatch.setattr(runs, "append_line", no_room_for("rolled_back"))
    with pytest.raises(RunFailed, match="the same data would do the same harm"):
        trainer.fit()


def test_the_heart_beats_through_a_long_validation(lab, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    beats = []

    class LongLook(Line):
        def validation_step(self, batch, step):
            time.sleep(0.3)
            beats.append(json.loads(run.heartbeat_file.read_text())["time"])
            return super().validation_step(batch, step)

    run, trainer = lab(kind=LongLook, max_steps=5, validate_every=5)
    trainer.fit()
    assert len(beats) == len(set(beats)) == 2 and beats[1] - beats[0] >= 0.2
    assert run.heartbeat()["state"] == "complete" and run.heartbeat()["step"] == 5


def test_a_resumed_run_holds_no_checkpoint_open_and_a_failed_prune_is_no_failed_save(lab, monkeypatch, capsys):
    _, trainer = lab(max_steps=5)
    trainer.fit()
    run, trainer = lab(keep={"last": 1, "best": 0}, validate_every=100)
    real, held = shutil.rmtree, []

    def rmtree(path):
        """As on NFS, where a folder with an open file stays; and one more that will not go."""
        held.append(str(run.path) in Path("/proc/self/maps").read_text())
        if "step_000000010" in path.name:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        real(path)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    assert trainer.fit() is Stop.NO
    assert held and not any(held)
    assert not [e for e in run.history() if e["event"] == "save_failed"]
    assert "step_000000010_pruned cannot be removed" in capsys.readouterr().err


def test_a_sample_that_takes_long_is_no_hang_and_the_other_ranks_wait_for_it(tmp_path):
    write_dataset(tmp_path / "data", [40])
    write_dataset(tmp_path / "data", [7], split="valid")
    codes, reasons = run_ranks(2, tmp_path / "stores", train_with_long_samples, str(tmp_path), timeout=6)
    assert (codes, reasons) == ([0, 0], ["NO", "NO"])
    assert [p.parent.name for p in sorted(tmp_path.rglob("made"))] == ["step_000000002", "step_000000004"]


def train_with_long_samples(world, folder):
    tree = {
        "model": {"system": "line"},
        "data": {"recipe": "toy", "batch_size": 4},
        "optimizer": {"lr": 0.01},
        "trainer": {"max_steps": 4, "sample_every": 2, "hang_seconds": 6},
    }
    config = parse_config(tree, ModelSection, "test")
    run = RunFolder(Path(folder) / "run")
    run.create()
    attempt = Attempt(run.claim_attempt() if world.rank == 0 else None, StopFlag())
    manifest, fabric = read_manifest(Path(folder) / "data"), make_fabric(config.trainer, world)
    return Trainer(run, config, LongSample(config, {}), manifest, fabric, world, attempt).fit().name


def test_a_sample_that_finds_no_room_ends_nothing(lab, capsys):
    class NoRoom(Line):
        def sample(self, batch, folder, step):
            no_room(folder)

    run, trainer = lab(kind=NoRoom, sample_every=10)
    assert trainer.fit() is Stop.NO and run.steps()[-1] == 20
    assert "samples of step 10 cannot be written (No space left on device); training goes on" in capsys.readouterr().err


HUNG = """
import sys, time
from pathlib import Path
from pipeline.runs import RunFolder
from pipeline.watchdog import Watchdog

with Watchdog(RunFolder(Path(sys.argv[1])), 0, 0.3).watching(1):
    time.sleep(30)
"""


def test_a_hang_is_ended_where_nothing_can_be_written(tmp_path):
    """No folder for logs, no history: the stacks go to stderr and the rank ends all the same."""
    ended = subprocess.run([sys.executable, "-c", HUNG, tmp_path / "gone"], capture_output=True, text=True, timeout=25)
    assert ended.returncode == EXIT_HUNG
    assert "so it lacks: hung (rank 0, after_step 1" in ended.stderr
    assert "<module>" in ended.stderr and "watchdog.py" in ended.stderr
