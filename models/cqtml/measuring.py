"""Figures that a generator and a policy share: do lights follow the music that is playing, and is what is said local?

Shapes: B segments, S outputs of each, 4 lights, T frames, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cqtml.brightness import expected, to_columns
from models.cqtml.config import ModelConfig
from models.cqtml.judge import correlation, smooth
from models.cqtml.network import Generator
from models.cqtml.vit import PATCH
from models.metrics import Figure, mean
from pipeline.engine import to_device
from pipeline.errors import UserError
from pipeline.loader import Evaluation
from pipeline.manifest import read_manifest
from pipeline.train_module import Batch

BATCH = 16
LAST = 0.1  # of a segment, that is replaced to see how far a change reaches


def held_out(folder: Path, split: str, device: torch.device) -> Iterator[Batch]:
    """The split in batches. UserError where it has fewer than two segments: there is nothing to shuffle."""
    manifest = read_manifest(folder)
    if manifest.samples(split) < 2:
        raise UserError(
            f"the {split} split of {folder} has {manifest.samples(split)} segments; the figures need 2 at least."
        )
    for batch in Evaluation(manifest, split, batch_size=BATCH):
        yield to_device(batch, device)


def follows(lights: Tensor, onsets: Tensor) -> Tensor:
    """How far lights rise where onsets are, within a column (46 ms): (B, 4, T) and (B, T) -> Pearson's correlation (B,), over columns."""
    columns = F.avg_pool1d(lights, PATCH, ceil_mode=True, count_include_pad=False)
    rise = columns.diff(dim=-1).clamp_min(0).sum(1)
    return correlation(smooth(rise), smooth(to_columns(onsets))[:, 1:])


def onset_figures(name: str, lights: Tensor, onsets: Tensor) -> dict[str, Figure | float]:
    """Of a whole split: with the onsets that are playing, with those of another segment, and the difference."""
    true, shuffled = follows(lights, onsets), follows(lights, onsets.roll(len(onsets) // 2, 0))
    return {
        f"{name}_onset_correlation": mean(true),
        f"{name}_onset_correlation_shuffled": mean(shuffled),
        f"{name}_onset_correlation_gain": mean(true - shuffled),
    }


def locality(generator: Generator, config: ModelConfig, cqt: Tensor) -> dict[str, Tensor]:
    """Of the change in mean brightness when the last tenth becomes another segment's, the share in that tenth and one column: (B,).

    ``locality``: of the sum of absolute changes; ``locality_energy``: of their squares.
    """
    frames, altered = cqt.shape[-1], cqt.clone()
    begin = round((1 - LAST) * frames)
    altered[..., begin:] = cqt.roll(1, 0)[..., begin:]
    before, after = (expected(generator(each), config.head) for each in (cqt, altered))
    change = (after - before).abs()
    first = max(0, begin // PATCH - 1)
    shares = {"locality": change.sum(1), "locality_energy": change.square().sum(1)}
    return {name: each[:, first:].sum(1) / each.sum(1).clamp_min(1e-12) for name, each in shares.items()}
