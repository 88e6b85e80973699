"""Variations of what is heard, so that a small corpus is not learned by heart: what music teaches a light is computed from them anew.

Shapes: B segments, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.cqtml.config import Augment
from pipeline.rng import KeyedRandom


def varied(cqt: Tensor, amounts: Augment, random: KeyedRandom, position: Tensor) -> Tensor:
    """(B, 2, 84, T) -> the same shape: louder or softer, transposed, and begun somewhere else (in a circle); keyed by position."""
    draws = random.uniform("cqtml/augment", position, (3,)).tolist()
    rows = []
    for each, (loudness, pitch, time) in zip(cqt, draws, strict=True):
        moved = each.roll(int(time * each.shape[-1]), -1) if amounts.rotate else each
        steps = round((2 * pitch - 1) * amounts.semitones)
        if steps:
            moved = _transposed(moved, steps)
        gain = torch.zeros_like(moved)
        gain[0] = (2 * loudness - 1) * amounts.gain
        rows.append(moved + gain)
    return torch.stack(rows)


def _transposed(cqt: Tensor, steps: int) -> Tensor:
    """(2, 84, T) by ``steps`` bins, up where positive; bins that come from outside are what the outermost one was."""
    bins = torch.arange(cqt.shape[1], device=cqt.device) - steps
    return cqt[:, bins.clamp(0, cqt.shape[1] - 1)]
