"""Variations of what is heard, so that a small corpus is not learned by heart: what music teaches a light is computed from them anew.

Shapes: B segments, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.cqtml.config import Augment
from pipeline.rng import KeyedRandom


def varied(cqt: Tensor, amounts: Augment, random: KeyedRandom, position: Tensor) -> Tensor:
    """(B, 2, 84, T) -> the same shape: louder or softer, transposed, and its pieces in another order; keyed by position."""
    draws = random.uniform("cqtml/augment", position, (2,)).tolist()
    cuts = random.uniform("cqtml/augment/cuts", position, (2, amounts.pieces))
    rows = []
    for each, (loudness, pitch), (places, order) in zip(cqt, draws, cuts, strict=True):
        moved = _reordered(each, places[1:], order)
        steps = round((2 * pitch - 1) * amounts.semitones)
        if steps:
            moved = _transposed(moved, steps)
        gain = torch.zeros_like(moved)
        gain[0] = (2 * loudness - 1) * amounts.gain
        rows.append(moved + gain)
    return torch.stack(rows)


def _reordered(cqt: Tensor, places: Tensor, order: Tensor) -> Tensor:
    """(2, 84, T) cut at ``places`` in (0, 1), and its pieces put together again as ``order`` (one number a piece) sorts them."""
    frames = sorted(int(place * cqt.shape[-1]) for place in places.tolist())
    pieces = torch.tensor_split(cqt, frames, -1)
    return torch.cat([pieces[number] for number in order.argsort().tolist()], -1)


def _transposed(cqt: Tensor, steps: int) -> Tensor:
    """(2, 84, T) by ``steps`` bins, up where positive; bins that come from outside are what the outermost one was."""
    bins = torch.arange(cqt.shape[1], device=cqt.device) - steps
    return cqt[:, bins.clamp(0, cqt.shape[1] - 1)]
