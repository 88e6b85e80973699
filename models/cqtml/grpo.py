"""Group-relative policy optimisation (Shao et al. 2402.03300): several outputs for one input, each measured against its group.

An output is a level for each of 4 lights and C columns, drawn independently given the music; each is a token. The temperature of the draw
is inside every log-probability, once (``brightness.log_probability``).

Shapes: B inputs, S outputs in a group, 4 lights, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-4  # deviation of a group's rewards below which nobody was better


def group_advantage(rewards: Tensor) -> Tensor:
    """(B, S) -> (B, S): how many deviations above its group's mean, Section 4.1.2; 0 where all are alike."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + LEAST)


def clipped_objective(now: Tensor, drawn: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Eq. (3) without its divergence: the mean over tokens of min(r A, clip(r) A), and the share of tokens that were clipped.

    Args:
        now, drawn: log-probabilities (B, S, 4, C) under the network that learns, and under the one that drew.
        advantage: (B, S).
    """
    ratio, gain = (now - drawn).exp(), advantage[:, :, None, None]
    held = ratio.clamp(1 - clip, 1 + clip)
    objective = torch.minimum(ratio * gain, held * gain)
    return objective.mean(), ((ratio - held).abs() > 0).float().mean()


def diversity(lights: Tensor) -> Tensor:
    """(B, S, 4, C) -> (B,): mean deviation of brightness over a group; 0 where all outputs are the same."""
    return lights.std(1).mean((1, 2))
