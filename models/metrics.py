"""Figures with 95 % intervals, in one form everywhere: ``{"value", "low", "high", "count"}``.

The intervals take the counted things as independent; notes of one track are not quite, so read them as a lower bound.
"""

from __future__ import annotations

import math

from torch import Tensor

Figure = dict[str, float]
Z = 1.959964  # normal quantile of a two-sided 95 % interval


def accuracy(right: Tensor) -> Figure:
    """Share of ``right`` (bool, any shape) that is true, with Wilson's interval (JASA 22, 1927), which stays in [0, 1]."""
    count, hits = right.numel(), int(right.sum())
    if count == 0:
        raise ValueError("accuracy of nothing")
    share, z2 = hits / count, Z * Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return {"value": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "count": count}


def mean(values: Tensor) -> Figure:
    """Mean of ``values`` (any shape, at least two) with the normal interval of the mean."""
    if (count := values.numel()) < 2:
        raise ValueError("an interval needs at least two values")
    values = values.double()
    centre, half = float(values.mean()), Z * float(values.std()) / math.sqrt(count)
    return {"value": centre, "low": centre - half, "high": centre + half, "count": count}
