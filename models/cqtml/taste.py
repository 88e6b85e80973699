"""The reward: how well lights go with music, one number, learned from which of two outputs people preferred.

Two encoders of convolutions over time, one of what is heard and one of the four lights; lights attend to music (Vaswani et al. 1706.03762,
Section 3.2) and both are averaged over time. It takes what the policy gives: brightness of every frame.

Shapes: B inputs, S outputs for each, T frames, C = ceil(T / 16) columns, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.precision import full_precision
from models.cqtml.config import BINS, LIGHTS, RewardShape
from models.cqtml.network import Hearing

STRIDES = (4, 2, 2)
COLUMN = 16
CENTRE = 1e-3  # weight of (r_a + r_b)^2: differences leave open where zero is (Eisenstein et al. 2312.09244)


class Encoder(nn.Module):
    """(B, channels, T) -> (B, C, W)."""

    def __init__(self, channels: int, kernel: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, stride in zip((width // 2, width, 2 * width), STRIDES, strict=True):
            layers += [nn.Conv1d(channels, wide, kernel, stride, kernel // 2), nn.GroupNorm(1, wide), nn.GELU()]
            channels = wide
        self.layers = nn.Sequential(*layers)
        self.project = nn.Linear(channels, width)

    def forward(self, signal: Tensor) -> Tensor:
        return self.project(self.layers(F.pad(signal, (0, -signal.shape[-1] % COLUMN))).mT)


class Taste(nn.Module):
    """``data``: mean and deviation of the CQT's bins."""

    def __init__(self, shape: RewardShape, data: dict[str, Any]) -> None:
        super().__init__()
        self.hearing = Hearing(data)
        self.music = Encoder(2 * BINS, 9, shape.width)
        self.lights = Encoder(LIGHTS, 5, shape.width)
        self.norm = nn.LayerNorm(shape.width)
        self.attention = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        self.score = nn.Sequential(nn.Linear(2 * shape.width, shape.width), nn.GELU(), nn.Linear(shape.width, 1))

    def forward(self, cqt: Tensor, lights: Tensor) -> Tensor:
        """(B, 2, 84, T) as prepared and (B, S, 4, T) brightness -> rewards (B, S). The music is encoded once for all S."""
        outputs = lights.shape[1]
        heard = self.music(self.hearing(cqt).flatten(1, 2))
        seen = self.lights(2 * lights.float().flatten(0, 1) - 1)
        repeated = heard.repeat_interleave(outputs, 0)
        attended, _ = self.attention(self.norm(seen), repeated, repeated, need_weights=False)
        together = torch.cat([seen.mean(1), (seen * attended).mean(1)], 1)
        return self.score(together)[:, 0].unflatten(0, (len(cqt), outputs))


@full_precision
def preference_loss(first: Tensor, second: Tensor, choice: Tensor) -> Tensor:
    """Bradley-Terry (Biometrika 39, 1952): -log sigma(r_w - r_l), (B,) each -> (B,). ``choice``: the share of raters for the first.

    Exchanging the two and ``choice`` for 1 - ``choice`` gives the same number: the order in which they were shown cannot count.
    """
    first, second = first.float(), second.float()
    decided = F.binary_cross_entropy_with_logits(first - second, choice, reduction="none")
    return decided + CENTRE * (first + second).square()


@full_precision
def calibration_error(probability: Tensor, happened: Tensor, bins: int = 10) -> Tensor:
    """Expected calibration error (Naeini et al., AAAI 2015): |confidence - accuracy| over equal bins of confidence, weighted by count.

    ``probability`` (B,) that the first is preferred, ``happened`` (B,) whether it was.
    """
    confidence = torch.maximum(probability, 1 - probability)
    right = ((probability > 0.5) == (happened > 0.5)).float()
    place = ((confidence - 0.5) * 2 * bins).long().clamp_max(bins - 1)
    count = torch.zeros(bins).index_add(0, place, torch.ones_like(confidence)).clamp_min(1e-9)
    gap = torch.zeros(bins).index_add(0, place, confidence - right) / count
    return (gap.abs() * count / len(confidence)).sum()
