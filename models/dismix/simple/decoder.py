"""From latents to spectrograms: FiLM makes a source of pitch and timbre, a GRU renders it or a mixture (Section 4).

Shapes: D latent width (64), C mel bands (128), T frames (10), ... any leading dims.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FiLM(nn.Module):
    """f_theta_s: the timbre latent scales and shifts the pitch latent, s = alpha(tau) * nu + beta(tau)."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(latent, 2 * latent)
        with torch.no_grad():  # start near s = nu: at a scale of 0 no gradient would reach the pitch path
            self.modulate.bias[:latent] += 1.0

    def forward(self, timbre: Tensor, pitch: Tensor) -> Tensor:
        """(..., D) and (..., D) -> (..., D)."""
        scale, shift = self.modulate(timbre).chunk(2, dim=-1)
        return scale * pitch + shift


class Decoder(nn.Module):
    """theta_m: a latent, the same at every frame, through a two-layer bidirectional GRU and a linear (Appendix B.1)."""

    def __init__(self, latent: int, hidden: int, mel_bands: int) -> None:
        super().__init__()
        self.gru = nn.GRU(latent, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.project = nn.Linear(2 * hidden, mel_bands)

    def forward(self, latents: Tensor, frames: int) -> Tensor:
        """(..., D) -> (..., C, T) standardised log-mel; a sum of source latents renders their mixture."""
        flat = latents.flatten(0, -2)
        hidden, _ = self.gru(flat[:, None].expand(-1, frames, -1))
        return self.project(hidden).transpose(1, 2).unflatten(0, latents.shape[:-1])
