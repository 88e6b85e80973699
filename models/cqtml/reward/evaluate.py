"""The figures of a reward on held-out comparisons, of songs that neither generator nor reward has learned from.

``pair_accuracy``: share of comparisons, ties left out, in which the preferred output has the higher reward, with Wilson's interval.
``calibration_error``: expected calibration error of sigma(r_a - r_b). ``swap_error``: the largest |P(a over b) + P(b over a) - 1| when a
and b are really exchanged and everything is computed again; ``swap_consistency``: share of comparisons in which the same output wins then.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.cqtml.measuring import BATCH
from models.cqtml.reward.train_module import TrainModule
from models.cqtml.taste import calibration_error
from models.metrics import Figure, accuracy
from models.showing import canvas, save
from pipeline.engine import to_device
from pipeline.errors import UserError
from pipeline.loader import Evaluation
from pipeline.manifest import read_manifest
from pipeline.train_module import Batch

BINS = 10


@torch.no_grad()
def evaluate(module: TrainModule, data_folder: Path, out: Path, split: str = "test") -> Mapping[str, Figure | float]:
    """The figures by name, and ``calibration.png`` in ``out``. UserError where the split has no comparison that is decided."""
    module.eval()
    manifest, device = read_manifest(data_folder), module.taste.hearing.mean.device
    if not manifest.samples(split):
        raise UserError(f"{data_folder} has no comparisons of {split} songs; rate pairs of all splits.")
    parts = []
    for batch in Evaluation(manifest, split, batch_size=BATCH):
        there = to_device(batch, device)
        parts.append(torch.stack([_margin(module, there), -_margin(module, _exchanged(there)), there["choice"]]).cpu())
    margin, exchanged, choice = torch.cat(parts, 1)
    decided = choice != 0.5
    if not decided.any():
        raise UserError(f"every comparison of {split} songs in {data_folder} is a tie; rate more pairs.")
    right = ((margin > 0) == (choice > 0.5))[decided]
    probability = margin.sigmoid()
    _show(probability[decided], choice[decided], out)
    return {
        "pair_accuracy": accuracy(right),
        "ties": float((~decided).float().mean()),
        "calibration_error": float(calibration_error(probability[decided], (choice[decided] > 0.5).float(), BINS)),
        "swap_consistency": accuracy((margin > 0) == (exchanged > 0)),
        "swap_error": float((probability - exchanged.sigmoid()).abs().max()),
    }


def _margin(module: TrainModule, batch: Batch) -> Tensor:
    """r_a - r_b, (B,)."""
    first, second = module.rewards(batch)
    return first - second


def _exchanged(batch: Batch) -> Batch:
    return {**batch, "a": batch["b"], "b": batch["a"]}


def _show(probability: Tensor, choice: Tensor, out: Path) -> Path:
    """How often what was said to be preferred was: a calibrated reward lies on the diagonal."""
    figure, axes = canvas(1, 1, width=4.0, height=3.6)
    for low, high in itertools.pairwise(torch.linspace(0, 1, BINS + 1)):
        inside = (probability >= low) & (probability <= high)
        if inside.any():
            size = 20 + 180 * float(inside.float().mean())
            axes[0][0].scatter(
                float(probability[inside].mean()), float((choice[inside] > 0.5).float().mean()), s=size, color="#00798c"
            )
    axes[0][0].plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes[0][0].set(xlabel="said: probability that a is preferred", ylabel="happened: share in which it was")
    return save(figure, out / "calibration.png")
