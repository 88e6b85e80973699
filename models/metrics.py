"""Figures with 95 % intervals, in one form everywhere: ``{"value", "low", "high", "count"}``; and distances of distributions.

The intervals take the counted things as independent; notes of one track are not quite, so read them as a lower bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Figure = dict[str, float]
LEAST = 1e-20  # of a product of two variances
RESAMPLES = 10_000  # from one fixed seed: the same values give the same interval
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


def ratio_of_means(one: Tensor, other: Tensor) -> Figure:
    """mean(one) / mean(other) of values (n,) in pairs, with the percentile interval of RESAMPLES bootstraps of the pairs (Efron 1979)."""
    if one.shape != other.shape or (count := len(one)) < 2:
        raise ValueError("an interval of a ratio needs at least two pairs")
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))
    ratios = one.double()[drawn].mean(1) / other.double()[drawn].mean(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": float(one.double().mean() / other.double().mean()), "low": low, "high": high, "count": count}


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, over the last dimension: (..., n) each -> (...). 0 where one of them does not move; differentiable there, too."""
    one, other = (x - x.mean(-1, keepdim=True) for x in (one, other))
    scales = (one.square().sum(-1) * other.square().sum(-1)).clamp_min(LEAST).sqrt()
    return (one * other).sum(-1) / scales


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 1811.02508, Eq. (5)): (..., n) each -> (...).

    No mean is taken off. 0 over 0 counts as LEAST over LEAST: a silent target has no ratio that means anything, leave it out.
    """
    scale = (estimate * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True).clamp_min(LEAST)
    wanted = scale * target
    ratio = wanted.square().sum(-1).clamp_min(LEAST) / (estimate - wanted).square().sum(-1).clamp_min(LEAST)
    return 10 * ratio.log10()


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features, (n, D) and (m, D), n and m at least 2.

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2) (Dowson and Landau 1982; Heusel et al. 2017, Eq. (6)), in
    double precision. The product is symmetric, so its root needs eigenvalues only, and the negative ones that rounding leaves are 0:
    no general matrix root, which fails where a covariance is singular, as it is with fewer samples than dimensions.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError("a covariance needs at least two samples")
    one, other = one.double().cpu(), other.double().cpu()
    first, second = (torch.atleast_2d(features.T.cov()) for features in (one, other))
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    apart = (one.mean(0) - other.mean(0)).square().sum()
    return max(0.0, float(apart + first.trace() + second.trace() - 2 * shared))
