"""The generator: what is heard, standardised, through a body to a distribution of brightness for each light and patch column.

Shapes: B inputs, T frames, C = ceil(T / 16) columns, 4 lights, K levels (1 with the continuous head).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models.cqtml.cnn import TimeConvolutions
from models.cqtml.config import BINS, LIGHTS, ModelConfig
from models.cqtml.vit import VisionTransformer

PHASE = math.pi / math.sqrt(3)  # deviation of an angle that may be any


class Hearing(nn.Module):
    """Log-magnitude standardised for each bin, beside the phase of unit variance: (B, 2, 84, T) -> the same shape."""

    mean: Tensor
    std: Tensor

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        # Facts of the data, not weights: they come with the manifest, not with a checkpoint.
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(data[name], dtype=torch.float32)[:, None], persistent=False)

    def forward(self, cqt: Tensor) -> Tensor:
        magnitude, phase = cqt.float().unbind(1)
        return torch.stack([(magnitude - self.mean) / self.std.clamp_min(1e-3), phase / PHASE], 1)


class Generator(nn.Module):
    """(B, 2, 84, T) as prepared -> logits (B, 4, K, C), for any T."""

    def __init__(self, config: ModelConfig, data: dict[str, Any]) -> None:
        super().__init__()
        assert len(data["mean"]) == BINS
        self.outputs = config.head.outputs
        self.hearing = Hearing(data)
        body = VisionTransformer if config.body.name == "vit" else TimeConvolutions
        self.body = body(config.body, LIGHTS * self.outputs)

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer's; convolutions over time have none, and hold little."""
        return iter(self.body.blocks) if isinstance(self.body, VisionTransformer) else iter(())

    def forward(self, cqt: Tensor) -> Tensor:
        return self.body(self.hearing(cqt)).unflatten(-1, (LIGHTS, self.outputs)).permute(0, 2, 3, 1)

    def compiled(self) -> Iterator[nn.Module]:
        """See ``pipeline.train_module.TrainModule.compiled``: a transformer's blocks, or all convolutions."""
        if isinstance(self.body, VisionTransformer):
            yield from self.body.blocks
        else:
            yield self.body
