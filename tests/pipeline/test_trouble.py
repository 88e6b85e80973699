"""What must not end a training, and what must: a full disk, a slow file system, a long look at the samples."""

import errno
import json
import shutil
import time
from pathlib import Path

import pytest

import tests.pipeline.test_trainer as trainer_tests
from pipeline import checkpoint, heartbeat, runs
from pipeline.control import Stop
from pipeline.errors import RunFailed
from pipeline.files import append_line

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
