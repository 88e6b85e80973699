"""Checkpoints: bit-exact, whole or not there, and a damaged one is found, named and set aside."""

import errno
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint
from pipeline.checkpoint import BadCheckpoint, Checkpoint
from pipeline.config import Keep
from pipeline.errors import UserError


def make(step: int, loss: float | None = None) -> Checkpoint:
    torch.manual_seed(step)
    layer = torch.nn.Linear(40, 30)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 40)).sum().backward()
    optimizer.step()
    parts = {"model": layer.state_dict(), "optimizer.main": optimizer.state_dict()}
    return Checkpoint(step, parts, {"validation_loss": loss, "data": {"position": step * 4}})


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_round_trip_is_exact_and_an_optimizer_takes_it_back(tmp_path):
    written = make(7)
    loaded = checkpoint.load(checkpoint.save(tmp_path, written))
    assert loaded.step == 7 and loaded.state["data"] == {"position": 28}
    assert equal(written.parts, loaded.parts)
    fresh = torch.optim.Adam(torch.nn.Linear(40, 30).parameters(), lr=0.5)
    fresh.load_state_dict(loaded.parts["optimizer.main"])
    assert fresh.param_groups[0]["lr"] == 0.1


def test_weights_alone_are_enough_to_make_something_with_and_not_to_train_on(tmp_path):
    """As `sync/pull.py --only ema` brings it: without the optimizer."""
    written = make(7)
    (tmp_path / "checkpoints").mkdir()
    folder = checkpoint.save(tmp_path / "checkpoints", written)
    (folder / "optimizer.main.safetensors").unlink()
    weights, step = checkpoint.trained_weights(tmp_path)
    assert step == 7 and equal(weights, written.parts["model"]) and folder.is_dir()
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is missing"):
        checkpoint.load(folder, weights_only=True)
    (tmp_path / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"optimizer\.main\.safetensors is missing"):
        checkpoint.load(folder)


def test_a_thing_that_is_neither_tensor_nor_plain_is_refused(tmp_path):
    with pytest.raises(TypeError, match="model"):
        checkpoint.save(tmp_path, Checkpoint(1, {"model": {"x": object()}}, {}))


def damage(path, how: str) -> None:
    data = bytearray(path.read_bytes())
    match how:
        case "flipped":
            data[len(data) // 2] ^= 4
        case "truncated":
            del data[-3:]
        case "empty":
            data = bytearray()
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.main.safetensors", "state.json", "MANIFEST.json"])
def test_damage_is_found_and_named_and_the_one_before_is_used(tmp_path, name, how):
    checkpoint.save(tmp_path, make(1))
    newest = checkpoint.save(tmp_path, make(2))
    if how == "missing":
        (newest / name).unlink()
    else:
        damage(newest / name, how)
    if (name, how) == ("MANIFEST.json", "flipped") and checkpoint.read_json(newest / name) is not None:
        pytest.skip("loudly: this flip left the manifest the same JSON")
    loaded, rejected = checkpoint.load_newest(tmp_path, set_aside=True)
    assert loaded is not None and loaded.step == 1
    assert len(rejected) == 1 and name in rejected[0] and "bad_step_000000002" in rejected[0]
    assert checkpoint.steps(tmp_path) == [1]
    assert (tmp_path / "bad_step_000000002").is_dir(), "a bad checkpoint is kept for whoever wants to look"


def test_nothing_good_left_is_said_not_raised(tmp_path):
    damage(checkpoint.save(tmp_path, make(1)) / "model.safetensors", "flipped")
    loaded, rejected = checkpoint.load_newest(tmp_path, set_aside=True)
    assert loaded is None and len(rejected) == 1


def test_a_reader_goes_past_a_bad_checkpoint_and_touches_nothing(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpoint.save(folder, make(1))
    damage(checkpoint.save(folder, make(2)) / "model.safetensors", "flipped")
    _, step = checkpoint.trained_weights(tmp_path)
    assert step == 1 and checkpoint.steps(folder) == [1, 2]
    assert "step_000000002/model.safetensors is not the bytes" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["verify", "StoredParts"])
def test_a_reader_beside_a_run_that_prunes_lists_again(tmp_path, monkeypatch, capsys, moment):
    """The run saves a newer one and prunes the one that is being read, before its bytes are looked at or after."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpoint.save(folder, make(1))
    real = getattr(checkpoint, moment)

    def pruned(path, *args, **options):
        if path.name == "step_000000001":
            checkpoint.save(folder, make(2))
            checkpoint.prune(folder, Keep(last=1, best=0))
        return real(path, *args, **options)

    monkeypatch.setattr(checkpoint, moment, pruned)
    weights, step = checkpoint.trained_weights(tmp_path)
    assert step == 2 and equal(weights, make(2).parts["model"])
    assert capsys.readouterr().err == ""


def test_what_was_read_outlives_the_files_and_nothing_holds_them_open(tmp_path):
    stored = checkpoint.load(checkpoint.save(tmp_path, make(3)))
    read = stored.parts["model"]
    stored.parts.close()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert equal(read, make(3).parts["model"])


def test_what_will_not_go_is_named_and_in_nobodys_way(tmp_path, monkeypatch):
    """On NFS a folder with a file that is open somewhere cannot be removed."""
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, make(step))
    real = shutil.rmtree

    def rmtree(path):
        if "step_000000001" in path.name:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        real(path)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    (stuck,) = checkpoint.prune(tmp_path, Keep(last=1, best=0))
    assert "step_000000001_pruned cannot be removed (Directory not empty)" in stuck
    assert checkpoint.steps(tmp_path) == [3]
    assert checkpoint.sweep(tmp_path) == [stuck]
    checkpoint.save(tmp_path, make(1))
    assert len(checkpoint.prune(tmp_path, Keep(last=1, best=0))) == 1, "the name is taken, another is found"
    monkeypatch.undo()
    assert checkpoint.sweep(tmp_path) == [] and [p.name for p in tmp_path.iterdir()] == ["step_000000003"]


def test_retention_keeps_last_best_and_every_nth(tmp_path):
    losses = {10: math.nan, 20: 1.0, 30: 3.0, 40: 4.0, 50: 9.0, 60: None}
    for step, loss in losses.items():
        checkpoint.save(tmp_path, make(step, loss))
    checkpoint.prune(tmp_path, Keep(last=2, best=1, every=30))
    assert checkpoint.steps(tmp_path) == [20, 30, 50, 60]


def test_killed_while_writing_leaves_only_whole_checkpoints(tmp_path):
    """A writer in a loop, killed with -9 at random moments: whatever bears a final name loads."""
    program = textwrap.dedent("""
        import sys, itertools, pathlib, torch
        from pipeline import checkpoint
        folder = pathlib.Path(sys.argv[1])
        print("ready", flush=True)
        for step in itertools.count(max(checkpoint.steps(folder), default=0) + 1):
            part = {"x": torch.full((200_000,), float(step))}
            checkpoint.save(folder, checkpoint.Checkpoint(step, {"model": part}, {}))
    """)
    rng = random.Random(0)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        checkpoint.sweep(tmp_path)
        for step in checkpoint.steps(tmp_path):
            loaded = checkpoint.load(tmp_path / checkpoint.folder_name(step))
            assert torch.all(loaded.parts["model"]["x"] == step)
    assert len(checkpoint.steps(tmp_path)) >= 4
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(checkpoint.TEMPORARY)]


def test_weights_of_another_architecture_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(tmp_path / "checkpoints", make(3))
    with pytest.raises(UserError, match="do not fit"):
        checkpoint.load_weights(torch.nn.Linear(3, 3), tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load_weights(torch.nn.Linear(3, 3), tmp_path / "nowhere")


def test_verify_says_which_file(tmp_path):
    path = checkpoint.save(tmp_path, make(1))
    checkpoint.verify(path)
    damage(path / "state.json", "flipped")
    with pytest.raises(BadCheckpoint, match=r"state\.json"):
        checkpoint.verify(path)
