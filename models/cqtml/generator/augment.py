"""Variations of what is heard, so that a small corpus is not learned by heart: what music teaches a light is computed from them anew.
And a stretch of it replaced by other music, to train that nothing far from there changes.

Shapes: B segments, T frames, C columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cqtml.config import Augment
from models.cqtml.vit import PATCH
from pipeline.rng import KeyedRandom

STRETCH = (0.05, 0.5)  # of a segment: the shortest and the longest that is replaced


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


def spliced(cqt: Tensor, other: Tensor, random: KeyedRandom, position: Tensor, after: int) -> tuple[Tensor, Tensor]:
    """A stretch of each (B, 2, 84, T), keyed by position, becomes what ``other`` (same shape) has there; it may hang over either end.

    Returns the spliced CQT, and (B, C) bool: columns that lie more than one column before the stretch, or more than ``after`` behind it,
    where a light may still be falling from what it did there.
    """
    frames = cqt.shape[-1]
    long, place = random.uniform("cqtml/splice", position, (2,), cqt.device).T
    length = (STRETCH[0] + (STRETCH[1] - STRETCH[0]) * long) * frames
    begin = place * (frames + length) - length
    time = torch.arange(frames, device=cqt.device)
    inside = (time >= begin[:, None]) & (time < (begin + length)[:, None])
    reached = F.max_pool1d(F.pad(inside.float(), (0, -frames % PATCH)), PATCH)
    far = F.max_pool1d(F.pad(reached, (after, 1)), 2 + after, 1) == 0
    return torch.where(inside[:, None, None], other.to(cqt.dtype), cqt), far
