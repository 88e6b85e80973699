"""How far two latents are apart: one number a sample. The mean square follows outliers of the latents; the others are robust to them."""

from __future__ import annotations

import math

from torch import Tensor

HUBER = 0.00054  # of the root of a sample's numbers (2310.14189, Table 1)


def default_scale(numbers: int) -> float:
    """c of the Pseudo-Huber distance for samples of so many numbers: 0.0974 for four stems of 64 x 127."""
    return HUBER * math.sqrt(numbers)


def distance(one: Tensor, other: Tensor, kind: str, scale: float | None) -> Tensor:
    """(B, ...) each -> (B,).

    l2: |d|^2 a number; pseudo_huber: sqrt(|d|^2 + c^2) - c (2310.14189, Table 1); cauchy: ln(1 + |d|^2 / (2 c^2)) (2502.01441).
    """
    each = (one - other).float().square().flatten(1)
    if kind == "l2":
        return each.mean(1)
    square = each.sum(1)
    c = default_scale(one[0].numel()) if scale is None else scale
    if kind == "cauchy":
        return (square / (2 * c**2)).log1p()
    return (square + c**2).sqrt() - c
