"""The baseline body: convolutions over time, which see a neighbourhood and nothing else.

Shapes: B pictures, T frames, C = ceil(T / 16) columns, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.cqtml.config import BINS, Body

STRIDE = 4  # twice: a column is 16 frames
KERNEL = 5


class ColumnNorm(nn.LayerNorm):
    """Over the channels of each column (B, D, C), and not over time: loudness far away changes nothing here."""

    def forward(self, columns: Tensor) -> Tensor:
        return super().forward(columns.mT).mT


class TimeConvolutions(nn.Module):
    """(B, 2, 84, T) standardised -> (B, C, ``outputs``), for any T."""

    def __init__(self, shape: Body, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 2 * BINS
        for stride in (STRIDE, STRIDE, *(1,) * shape.depth):
            kernel = stride if stride > 1 else KERNEL
            layers += [nn.Conv1d(channels, shape.width, kernel, stride, padding=0 if stride > 1 else KERNEL // 2)]
            layers += [ColumnNorm(shape.width), nn.GELU(), nn.Dropout(shape.dropout)]
            channels = shape.width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, picture: Tensor) -> Tensor:
        frames = picture.shape[-1]
        return self.head(self.layers(F.pad(picture.flatten(1, 2), (0, -frames % STRIDE**2))).mT)
