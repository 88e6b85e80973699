"""The cascade: two transformers, of which the second mends what the first made of two latents.

Shapes: B samples, C latent channels, L frames; D = 2 C in the first stage and 3 C in the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.jingle_d.config import CascadeShape

FIRST_GAIN = 0.1  # of what a stage adds to the mean of its streams before it has learned anything


class Stage(nn.Module):
    """(B, C, L) streams -> (B, C, L): their mean, and what a transformer over the streams side by side adds to it.

    Each layer attends to its own frames and then to a memory, which is the same streams in reverse order: the channels that hold the
    input meet the target's there and the other way round, so that both sides look at each other through one attention; in the second
    stage the first one's output stands in the middle and meets itself. The last linear layer has a spectral norm of one
    (Miyato et al. 1802.05957), so a step can be no larger than the normalised features before it.
    """

    def __init__(self, channels: int, streams: int, layers: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        width = streams * channels
        self.memory_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, feed_forward, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.constant_(self.norm.weight, FIRST_GAIN)
        self.out = spectral_norm(nn.Linear(width, channels))

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        mean = torch.stack(list(streams)).mean(0)
        frames, reverse = (torch.cat(list(order), 1).transpose(1, 2) for order in (streams, streams[::-1]))
        positions = sinusoids(frames.shape[1], frames.shape[2], frames.device)
        hidden, memory = frames + positions, self.memory_norm(reverse) + positions
        for layer in self.layers:
            hidden = layer(hidden, memory)
        added: Tensor = self.out(self.norm(hidden)).transpose(1, 2)
        return mean + added


class Cascade(nn.Module):
    """Two latents (B, C, L) -> one; the second stage sees what the first one made between them."""

    def __init__(self, channels: int, shape: CascadeShape) -> None:
        super().__init__()
        first, second = shape.feed_forward
        self.stages = nn.ModuleList(
            Stage(channels, streams, shape.layers, shape.heads, feed_forward, shape.dropout)
            for streams, feed_forward in ((2, first), (3, second))
        )

    @property
    def layers(self) -> list[nn.Module]:
        """Of both stages."""
        return [layer for stage in self.stages for layer in stage.get_submodule("layers").children()]

    def forward(self, given: Tensor, target: Tensor) -> Tensor:
        draft = self.stages[0]([given, target])
        made: Tensor = self.stages[1]([given, draft, target])
        return made


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width) positions, sines and then cosines (Vaswani et al. 1706.03762, Section 3.5)."""
    place = torch.arange(length, device=device, dtype=torch.float32)
    pitch = torch.exp(-math.log(10000.0) / (width // 2) * torch.arange(width // 2, device=device, dtype=torch.float32))
    angle = place[:, None] * pitch
    return torch.cat([angle.sin(), angle.cos()], dim=1)
