"""Two ranks train as one: the same losses, the same balancer, validation of the whole split, and nobody leaves the loop alone."""

import subprocess
import sys

import pytest
import torch

from pipeline import checkpoint
from pipeline.journal import read_journals
from pipeline.runs import RunFolder
from tests.conftest import ROOT
from tests.models.jingle_d_data import write_latents
from tests.models.jingle_d_ranks import STEPS, fit


def test_two_ranks_are_one(tmp_path):
    write_latents(tmp_path / "data", {"train": [8], "valid": [3]})  # three do not divide: each rank sees its own part
    runs = [RunFolder(tmp_path / f"run{ranks}") for ranks in (1, 2)]
    for run in runs:
        run.create()
    words = [sys.executable, "-m", "tests.models.jingle_d_ranks", str(tmp_path)]
    started = [subprocess.Popen([*words, str(rank), "2"], cwd=ROOT) for rank in range(2)]
    fit(tmp_path, 0, 1)
    assert [rank.wait(timeout=300) for rank in started] == [0, 0]

    first, second = (torch.load(tmp_path / f"rank{rank}of2.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first), "no rank went its own way"
    assert (first["balancer.weights"] > 0).any()
    one, two = ([p.metrics for p in read_journals(run.metrics)] for run in runs)
    losses = [[m["train/loss"] for m in points if "train/loss" in m] for points in (one, two)]
    assert len(losses[0]) == STEPS and losses[1] == [pytest.approx(x, rel=2e-3) for x in losses[0]]
    valid = [next(m for m in points if "valid/loss" in m) for points in (one, two)]
    for name in ("valid/loss", "valid/onset_correlation", "valid/normalised_complementarity"):
        assert valid[1][name] == pytest.approx(valid[0][name], rel=2e-3, abs=1e-5)
    stored = checkpoint.load(runs[1].checkpoints / checkpoint.folder_name(STEPS))
    assert {"optimizer.generator", "optimizer.discriminator", "ema"} <= set(stored.parts)
    assert torch.equal(stored.parts["model"]["balancer.squares"], first["balancer.squares"])
    assert all(name.startswith("mixer.") for name in stored.parts["ema"])
