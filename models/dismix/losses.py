"""The terms of Eq. (8), each a sum over dimensions and sources and a mean over the batch.

Shapes: B mixtures, N sources, C mel bands, T frames, D latent width, P pitch classes, G groups, S samples a group.
Sums over a thousand bins are taken in float32 whatever the model computes in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_error(target: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """-log N(target; mean, sigma^2 I) (B, ...) without its constant: the first term of Eq. (6), and Eq. (9)."""
    return (target.float() - mean.float()).square().sum() / (2 * sigma**2 * len(target))


def gaussian_error_learned(target: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """The same of (B, ...) where sigma is learned, and with it the part of the constant that depends on sigma."""
    error = (target.float() - mean.float()).square().sum() / (2 * len(target))
    return error * torch.exp(-2 * log_sigma) + log_sigma * (target.numel() // len(target))


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """D_KL(N(mean, variance) || N(0, I)) of the timbre latents (B, N, D), Eq. (6)'s last term."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(mean)


def pitch_error(logits: Tensor, pitch_class: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B, N, ..., P), before binarisation, with one-hot classes (B, N, ...) (Section 3.3)."""
    ones = logits.new_ones((), dtype=torch.float32).expand(*pitch_class.shape, 1)
    # Not F.one_hot, which reads the smallest and the largest class back on the host.
    target = torch.zeros_like(logits, dtype=torch.float32).scatter(-1, pitch_class[..., None], ones)
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum") / len(logits)


def barlow_twins_diagonal(query: Tensor, timbre: Tensor) -> Tensor:
    """Sum over sources and dimensions of (1 - C_dd)^2, mean over groups (Eq. (7)).

    C_dd is the correlation of dimension d of query embedding and timbre latent over the samples of a group; only the
    diagonal counts.

    Args:
        query, timbre: (G, S, N, D).
    """
    query, timbre = (x - x.mean(1, keepdim=True) for x in (query, timbre))
    scale = query.square().sum(1) * timbre.square().sum(1)
    correlation = (query * timbre).sum(1) * torch.rsqrt(scale + 1e-8)  # (G, N, D)
    return (1 - correlation).square().sum() / len(query)
