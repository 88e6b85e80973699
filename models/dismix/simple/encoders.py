"""From spectrograms to latents: the query-conditioned encoders of the simple case (Sections 3.1, 3.2, Appendix B.1).

Shapes: B clips, C mel bands (128), T frames (10), D latent width (64), P pitch classes, ... any leading dims.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrameConv(nn.Conv1d):
    """Conv1d over time on channels-last input, as one matrix product per layer.

    Ten frames are too few for the convolution kernels of a CPU, and LayerNorm wants the channels last anyway.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, in) -> (B, T', out)."""
        pad, kernel, stride = int(self.padding[0]), self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return F.linear(frames, self.weight[..., 0], self.bias)
        if pad:
            frames = F.pad(frames, (0, 0, pad, pad))
        steps = (frames.shape[1] - kernel) // stride + 1
        # Slices, not unfold: unfold's gradient alone would cost a sixth of a training step.
        windows = torch.cat([frames[:, i : i + (steps - 1) * stride + 1 : stride] for i in range(kernel)], dim=-1)
        return F.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias)


class SpectrogramEncoder(nn.Module):
    """E_phi_m and E_phi_q: six Conv1d, each but the last with LayerNorm and ReLU, then the mean over time (Table 4)."""

    def __init__(self, mel_bands: int, width: int, latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, kernel, stride in [(mel_bands, 3, 1), (width, 3, 1), (width, 4, 2), (width, 3, 1), (width, 3, 1)]:
            layers += [FrameConv(inputs, width, kernel, stride, padding=1), nn.LayerNorm(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.project = FrameConv(width, latent, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """(B, C, T) standardised log-mel -> (B, D). The mean commutes with the last, pointwise layer: it goes first."""
        frames = self.layers(mel.transpose(1, 2))
        return self.project(frames.mean(1, keepdim=True)).squeeze(1)


def _trunk(inputs: int, hidden: int, depth: int) -> nn.Sequential:
    """``depth`` hidden layers of Linear, LayerNorm, ReLU (Table 5)."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()]
    return nn.Sequential(*layers)


class Transcriber(nn.Module):
    """E_phi_nu: mixture and query embedding -> pitch logits of the queried source (Table 5)."""

    def __init__(self, latent: int, hidden: int, depth: int, pitches: int) -> None:
        super().__init__()
        self.trunk = _trunk(2 * latent, hidden, depth)
        self.head = nn.Linear(hidden, pitches)
        # One pitch in P sounds: start from that prior, or the first hundreds of steps only learn that bits are rare.
        nn.init.constant_(self.head.bias, -math.log(max(pitches - 1, 1)))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(..., 2 D) -> (..., P) logits."""
        return self.head(self.trunk(embeddings))


class Translator(nn.Sequential):
    """f_phi_nu: pitch bits (..., P) -> pitch latent (..., D), three linears (Table 5)."""

    def __init__(self, pitches: int, hidden: int, latent: int) -> None:
        super().__init__(
            nn.Linear(pitches, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, latent)
        )


class TimbreEncoder(nn.Module):
    """q_phi_tau: mixture and query embedding -> mean and log-variance of the timbre latent (Eq. (5))."""

    def __init__(self, latent: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.trunk = _trunk(2 * latent, hidden, depth)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 2 D) -> mean and log-variance, each (..., D)."""
        hidden = self.trunk(embeddings)
        return self.mean(hidden), self.log_variance(hidden)
