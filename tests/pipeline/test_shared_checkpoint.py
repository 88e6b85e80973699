"""A checkpoint that two ranks write together: whole or not there, whoever dies whenever, and equal on any number of ranks."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint, shared_checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.distributed import Agreement
from pipeline.shared_checkpoint import save_together
from tests.pipeline.ranks import run_ranks


def parts(step: int) -> dict:
    """Tensors of many sizes, some behind functions, and what is no tensor."""
    generator = torch.Generator().manual_seed(step)
    made = {f"w{i}": torch.randn(i * 7, generator=generator) for i in range(1, 12)}
    late = {name: (lambda tensor=tensor: tensor.clone()) for name, tensor in made.items()}
    return {"model": late, "optimizer.main": {"state": {0: {"step": torch.tensor(4.0), "m": made["w3"]}}, "lr": 0.5}}


def write(world, folder, step):
    save_together(Path(folder), Checkpoint(step, parts(step), {"validation_loss": 0.25}), Agreement(world))


@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_writes_the_same_tensors(tmp_path, ranks):
    assert run_ranks(ranks, tmp_path / "stores", write, str(tmp_path), 7)[0] == [0] * ranks
    loaded = checkpoint.load(tmp_path / checkpoint.folder_name(7))
    expected = {name: tensor() for name, tensor in parts(7)["model"].items()}
    assert loaded.step == 7 and loaded.state["validation_loss"] == 0.25
    assert all(torch.equal(loaded.parts["model"][name], tensor) for name, tensor in expected.items())
    optimizer = loaded.parts["optimizer.main"]
    assert optimizer["lr"] == 0.5 and torch.equal(optimizer["state"][0]["m"], expected["w3"])
    assert len(list((tmp_path / checkpoint.folder_name(7)).glob("shard-*.safetensors"))) == ranks


def die(world, folder, step, rank, moment):
    """``write``, and SIGKILL before or after one call."""
    when, name = moment.split()
    real = getattr(shared_checkpoint, name)

    def deadly(*words):
        if world.rank == rank and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*words)
        if world.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(shared_checkpoint, name, deadly)
    write(world, folder, step)


@pytest.mark.parametrize(
    ("rank", "moment", "left"),
    [
        (1, "before write_tensors", 1),
        (0, "after write_tensors", 1),
        (1, "after write_tensors", 1),
        (0, "before commit", 1),
        (0, "after commit", 2),
    ],
)
def test_killed_at_any_moment_the_last_good_one_is_there(tmp_path, rank, moment, left):
    checkpoint.save(tmp_path, Checkpoint(1, {"model": {"x": torch.ones(3)}}, {}))
    assert -signal.SIGKILL in run_ranks(2, tmp_path / "stores", die, str(tmp_path), 2, rank, moment)[0]
    checkpoint.sweep(tmp_path)
    loaded, rejected = checkpoint.load_newest(tmp_path, set_aside=True)
    assert loaded is not None and loaded.step == left and not rejected
    assert not list(tmp_path.glob(f"{checkpoint.TEMPORARY}*"))
    assert run_ranks(2, tmp_path / "stores", write, str(tmp_path), 3)[0] == [0, 0], "and the next one is written"


def write_on_a_full_disk(world, folder, step):
    """The disk of rank 1 takes 300 bytes; says what was raised."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ranks = Agreement(world)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        save_together(Path(folder), Checkpoint(step, parts(step), {}), ranks)
    except OSError as error:
        return error.strerror
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "nothing"


def test_a_full_disk_on_one_rank_is_an_error_on_all_and_leaves_nothing(tmp_path):
    checkpoint.save(tmp_path, Checkpoint(1, {"model": {"x": torch.ones(3)}}, {}))
    codes, said = run_ranks(2, tmp_path / "stores", write_on_a_full_disk, str(tmp_path), 2)
    assert codes == [0, 0] and said[0] == said[1] != "nothing"
    assert checkpoint.steps(tmp_path) == [1] and not list(tmp_path.glob(f"{checkpoint.TEMPORARY}*"))


def test_a_shard_that_lacks_a_tensor_is_a_bad_checkpoint(tmp_path):
    """Even where every file is what the manifest says."""
    path = checkpoint.save(tmp_path, Checkpoint(1, {"model": {"x": torch.ones(3)}}, {}))
    entry = checkpoint.write_tensors(path / "model.safetensors", {"model.y": torch.ones(3)})
    manifest = checkpoint.read_json(path / checkpoint.MANIFEST)
    manifest["files"]["model.safetensors"] = entry
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.BadCheckpoint, match=r"no file holds model\.x"):
        checkpoint.load(path)
