"""Brightness as the network speaks of it: a distribution over levels, or a continuous one; and from patch columns to frames and back.

A decision is made for each light and patch column, 21.5 times a second; between the centres of columns a light moves in a straight line.

Shapes: B inputs, S draws, 4 lights, C columns of 16 frames, T frames, K levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.precision import full_precision
from models.cqtml.config import Head
from models.cqtml.vit import PATCH

EDGE = 1e-6  # uniform draws are kept from 0 and 1 by this


def to_levels(brightness: Tensor, levels: int) -> Tensor:
    """Brightness in [0, 1] -> the nearest of K levels, int64; the inverse of ``from_levels`` for every K."""
    return (brightness.clamp(0, 1) * (levels - 1)).round().long()


def from_levels(indices: Tensor, levels: int) -> Tensor:
    """Levels 0..K-1 -> brightness, 0 to 1."""
    return indices.float() / (levels - 1)


def to_frames(columns: Tensor, frames: int) -> Tensor:
    """(..., 4, C) -> (..., 4, T): straight lines between the centres of columns."""
    flat = columns.flatten(0, -3) if columns.ndim > 3 else columns
    drawn = F.interpolate(flat, scale_factor=PATCH, mode="linear", align_corners=False)[..., :frames]
    return drawn.reshape(*columns.shape[:-1], frames)


def to_columns(frames: Tensor) -> Tensor:
    """(..., T) -> (..., C): the highest of each column, for targets: an onset counts wherever in a column it is."""
    flat = F.pad(frames.reshape(-1, 1, frames.shape[-1]), (0, -frames.shape[-1] % PATCH), value=0.0)
    return F.max_pool1d(flat, PATCH).reshape(*frames.shape[:-1], -1)


@full_precision
def most_likely(logits: Tensor, head: Head) -> Tensor:
    """(B, 4, K, C) -> brightness (B, 4, C): the most probable level, or the median of the continuous distribution."""
    if head.name == "levels":
        return from_levels(logits.float().argmax(2), head.levels)
    return logits[:, :, 0].float().sigmoid()


@full_precision
def expected(logits: Tensor, head: Head) -> Tensor:
    """(B, 4, K, C) -> mean brightness (B, 4, C), smooth in the logits."""
    if head.name == "levels":
        scale = torch.linspace(0, 1, head.levels, device=logits.device)
        return torch.einsum("blkc,k->blc", logits.float().softmax(2), scale)
    return logits[:, :, 0].float().sigmoid()


@full_precision
def draw(logits: Tensor, uniform: Tensor, temperature: float, head: Head) -> Tensor:
    """One output for every set of uniform numbers: (B, 4, K, C) and (B, S, 4, K, C) in (0, 1) -> brightness (B, S, 4, C).

    Levels by Gumbel's maximum of logits / temperature, continuous brightness by logistic noise of scale ``temperature``.
    """
    uniform = uniform.clamp(EDGE, 1 - EDGE)
    if head.name == "levels":
        gumbel = -(-uniform.log()).log()
        return from_levels((logits.float()[:, None] / temperature + gumbel).argmax(3), head.levels)
    return (logits.float()[:, None] + temperature * uniform.logit())[:, :, :, 0].sigmoid()


@full_precision
def log_probability(logits: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """Of levels (B, S, 4, C) under (B, 4, K, C) as they are drawn: (B, S, 4, C). The temperature counts once, here."""
    each = (logits.float() / temperature).log_softmax(2)
    return each[:, None].expand(-1, indices.shape[1], -1, -1, -1).gather(3, indices[:, :, :, None])[:, :, :, 0]


@full_precision
def divergence(logits: Tensor, start: Tensor, temperature: float) -> Tensor:
    """KL(now || start) of the distributions that are drawn from, exactly: (B, 4, K, C) each -> (B, 4, C), in nats."""
    now, then = ((each.float() / temperature).log_softmax(2) for each in (logits, start))
    return (now.exp() * (now - then)).sum(2)
