"""Who judges the output: by its latent, by whose style it has, by its sound. All of them give logits, high for real recordings.

Shapes: B samples, C latent channels, L frames, n audio samples; F bins and T frames of an STFT.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.blocks import fourier
from models.blocks.precision import full_precision
from models.jingle_d.config import AudioDiscriminatorShape, LatentDiscriminatorShape, StyleShape

SLOPE = 0.2  # of the leaky rectifiers
KERNELS = (3, 5, 7, 9)


class LatentDiscriminator(nn.Module):
    """(B, C, L) -> (B,): is this the latent of a recording?"""

    def __init__(self, channels: int, shape: LatentDiscriminatorShape) -> None:
        super().__init__()
        widths = itertools.pairwise((channels, *shape.channels))
        layers = [
            nn.Sequential(nn.Conv1d(a, b, kernel, padding=kernel // 2), nn.LeakyReLU(SLOPE))
            for (a, b), kernel in zip(widths, KERNELS, strict=True)
        ]
        self.layers = nn.Sequential(*layers)
        self.judge = nn.Sequential(
            nn.Linear(shape.channels[-1], shape.hidden), nn.LeakyReLU(SLOPE), nn.Linear(shape.hidden, 1)
        )

    def forward(self, latent: Tensor) -> Tensor:
        logits: Tensor = self.judge(self.layers(latent).mean(-1))[:, 0]
        return logits


class StyleDiscriminator(nn.Module):
    """(B, C, L) -> (B, 2): the logits of "an input" and of "a target"; two analysers on common features."""

    def __init__(self, channels: int, shape: StyleShape) -> None:
        super().__init__()
        first, second = shape.channels
        self.layers = nn.Sequential(
            nn.Conv1d(channels, first, 3, padding=1), nn.GroupNorm(1, first), nn.LeakyReLU(SLOPE),
            nn.Conv1d(first, second, 5, padding=2), nn.GroupNorm(1, second), nn.LeakyReLU(SLOPE),
        )  # fmt: skip
        self.analysers = nn.Linear(second, 2)

    def forward(self, latent: Tensor) -> Tensor:
        logits: Tensor = self.analysers(self.layers(latent).mean(-1))
        return logits


class StftDiscriminator(nn.Module):
    """(B, n) -> logits (B, ...) and the features of every layer, of one window (2210.13438, Section 3.4 and Figure 2)."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window

        def layer(before: int, kernel: tuple[int, int], stride: int = 1, dilation: int = 1) -> nn.Module:
            padding = (dilation * (kernel[0] // 2), kernel[1] // 2)
            return weight_norm(nn.Conv2d(before, channels, kernel, (1, stride), padding, (dilation, 1)))

        self.layers = nn.ModuleList(
            [layer(2, (3, 9)), *(layer(channels, (3, 9), 2, d) for d in (1, 2, 4)), layer(channels, (3, 3))]
        )
        self.judge = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden, features = self._spectrum(wave), []
        for layer in self.layers:
            hidden = nn.functional.leaky_relu(layer(hidden), SLOPE)
            features.append(hidden)
        return self.judge(hidden), features

    @full_precision
    def _spectrum(self, wave: Tensor) -> Tensor:
        """(B, n) -> (B, 2, T, F): real and imaginary part, of unit power for noise of unit power."""
        window = torch.hann_window(self.window, device=wave.device)
        found = fourier.stft(wave.float(), window, self.window // 4)
        return torch.view_as_real(found / window.norm()).permute(0, 3, 1, 2)


class AudioDiscriminator(nn.Module):
    """Several of them, one a window."""

    def __init__(self, shape: AudioDiscriminatorShape) -> None:
        super().__init__()
        self.scales = nn.ModuleList(StftDiscriminator(window, shape.channels) for window in shape.windows)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        logits, features = zip(*(scale(wave) for scale in self.scales), strict=True)
        return list(logits), list(features)
