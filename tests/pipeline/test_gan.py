"""Two optimizers in the common loop: alike on every rank, alike on any number of ranks, and over a restart."""

import subprocess
import sys

import pytest
import torch

from pipeline import checkpoint
from pipeline.journal import read_journals
from pipeline.runs import RunFolder
from tests.conftest import ROOT
from tests.pipeline.shard_factory import write_dataset


def losses(run: RunFolder) -> list[tuple[float, float]]:
    return [
        (p.metrics["train/loss"], p.metrics["train/told"])
        for p in read_journals(run.metrics)
        if "train/loss" in p.metrics
    ]


def test_a_gan_on_one_rank_and_on_two_in_one_attempt_and_in_two(tmp_path):
    write_dataset(tmp_path / "data", [40])
    runs = {name: RunFolder(tmp_path / name) for name in ("whole1", "pieces1", "whole2", "pieces2")}
    for run in runs.values():
        run.create()
    for ranks in (1, 2):
        words = [sys.executable, "-m", "tests.pipeline.gan_ranks", str(tmp_path)]
        started = [subprocess.Popen([*words, str(rank), str(ranks)], cwd=ROOT) for rank in range(ranks)]
        assert [rank.wait(timeout=120) for rank in started] == [0] * ranks
    final = {
        n: (r.checkpoints / checkpoint.folder_name(12) / checkpoint.MANIFEST).read_bytes() for n, r in runs.items()
    }
    assert final["whole1"] == final["pieces1"] and final["whole2"] == final["pieces2"]
    ranks = [torch.load(tmp_path / f"rank{rank}of2.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0]), "no rank went its own way"
    one, two = losses(runs["whole1"]), losses(runs["whole2"])
    assert len(one) == 12 and two == [pytest.approx(pair, rel=1e-4) for pair in one]

    stored = checkpoint.load(runs["whole1"].checkpoints / checkpoint.folder_name(12))
    assert set(stored.parts) >= {"optimizer.generator", "optimizer.discriminator", "ema"}
    assert {name.partition(".")[0] for name in stored.parts["ema"]} == {"generator"}
    (rates,) = [p.metrics for p in read_journals(runs["whole1"].metrics) if p.step == 2 and "train/loss" in p.metrics]
    assert (
        rates["train/learning_rate"] == 0.01 and rates["train/learning_rate_discriminator"] == 0.01
    )  # 0.02, half warmed up
