"""Networks over time alone: what stands in for the VAE family where there is no GPU (``model.ldm.over_time``).

Picture networks slide along frequency as they do along time, and a pitch is a place in frequency: they are slow on a CPU, and slow to learn
it. Here bands, features or pitches are channels, which mix in every layer. Inputs and outputs are those of the picture networks.

Shapes: K pictures, T mel frames, L = T / 4 latent frames, F mel bands, P pitch classes, W = 16 features, 8 latent channels.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from models.dismix.config import OverTimeShape
from models.dismix.ldm.encoders import FEATURES
from models.dismix.ldm.vae import LATENT

SHRINK = 4  # mel frames a latent frame


class Layer(nn.Module):
    """Normalisation, non-linearity and convolution beside the identity: (K, C, L) -> (K, C, L)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv1d(width, width, kernel, padding="same")

    def forward(self, frames: Tensor) -> Tensor:
        return frames + self.conv(F.silu(self.norm(frames)))


def _layers(shape: OverTimeShape, width: int) -> nn.Sequential:
    return nn.Sequential(*(Layer(width, shape.kernel) for _ in range(shape.layers)), nn.GroupNorm(1, width), nn.SiLU())


class Encoder(nn.Module):
    """A picture of mel bands or of pitch bits to latents, four frames at a time."""

    def __init__(self, shape: OverTimeShape, width: int, rows: int) -> None:
        super().__init__()
        self.entry = nn.Conv1d(rows, width, SHRINK, SHRINK)
        self.layers = _layers(shape, width)
        self.exit = nn.Conv1d(width, LATENT * FEATURES, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """(K, 1, T, rows) -> (K, 8, L, W)."""
        frames = self.entry(picture[:, 0].transpose(1, 2))
        return self.exit(self.layers(frames)).unflatten(1, (LATENT, FEATURES)).transpose(2, 3)


class Transcriber(nn.Module):
    """Latents to logits of pitch, frame by frame."""

    def __init__(self, shape: OverTimeShape, classes: int) -> None:
        super().__init__()
        width = shape.transcriber
        self.entry = nn.Conv1d(LATENT * FEATURES, width, shape.kernel, padding="same")
        self.layers = _layers(shape, width)
        self.grow = nn.ConvTranspose1d(width, width, SHRINK, SHRINK)
        self.exit = nn.Conv1d(width, classes, shape.kernel, padding="same")
        # One class in P is on: start from that prior
        nn.init.constant_(self.exit.bias, -math.log(classes - 1))  # type: ignore[arg-type]

    def forward(self, embedding: Tensor) -> Tensor:
        """(K, 8, L, W) -> (K, T, P) logits."""
        frames = self.layers(self.entry(embedding.transpose(2, 3).flatten(1, 2)))
        return self.exit(F.silu(self.grow(frames))).transpose(1, 2)
