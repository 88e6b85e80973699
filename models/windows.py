"""Pieces longer than what a model sees: windows that overlap, and one signal again out of what was made of them.

Shapes: W windows of T points (samples or frames) each, L points of the whole; leading dimensions are free.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def window_starts(length: int, window: int, hop: int | None = None) -> list[int]:
    """Where windows of ``window`` points begin that cover ``length`` >= ``window`` points to the last.

    ``hop`` apart, half a window unless given; the last one is moved back to end with the whole.
    """
    if length < window:
        raise ValueError(f"{length} points are less than a window of {window}")
    return sorted({*range(0, length - window + 1, hop or max(1, window // 2)), length - window})


def overlap_add(windows: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """Windows (W, ..., T) that begin at ``starts`` -> the whole (..., L), by triangular weights that sum to one where they overlap.

    Equal windows come back equal: no seam, no change of level. ``starts`` must leave no point uncovered.
    """
    points = windows.shape[-1]
    weight = torch.minimum(torch.arange(1, points + 1), torch.arange(points, 0, -1)).to(windows)
    total, weights = windows.new_zeros(*windows.shape[1:-1], length), windows.new_zeros(length)
    for start, piece in zip(starts, windows, strict=True):
        total[..., start : start + points] += weight * piece
        weights[start : start + points] += weight
    return total / weights
