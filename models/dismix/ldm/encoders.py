"""Who plays: mixture and query embeddings, joined, and the timbre latent (Section 5.2, Appendix B.2).

Shapes: B mixtures, K queried sources (of all mixtures in a row), F mel bands (64), T mel frames, L = T / 4 latent frames,
W = F / 4 latent features (16), 8 latent channels. Pictures are time before frequency.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.dismix.config import TimbreShape
from models.dismix.ldm.vae import LATENT

FEATURES = 16  # W


class MixtureEncoder(nn.Module):
    """E_phi_m: what the frozen codec says of the mixture, through a trained 1x1 convolution.

    With the pretrained VAE that is both parameters of its posterior, 16 channels, taken off the mel; with an analytic codec, which has
    no posterior, its latent, 8 channels. ``vae_encoder`` and ``quantise`` belong to the codec and are never trained.
    """

    def __init__(self, vae_encoder: nn.Module | None) -> None:
        super().__init__()
        self.vae_encoder = vae_encoder
        self.project = nn.Conv2d(LATENT if vae_encoder is None else 2 * LATENT, LATENT, 1)

    def forward(self, mixture: Tensor, quantise: nn.Module | None) -> Tensor:
        """(B, 1, T, F) log-mel where there is a VAE, else (B, 8, L, W) standardised latent -> e_m (B, 8, L, W)."""
        if self.vae_encoder is not None and quantise is not None:
            with torch.no_grad():
                mixture = quantise(self.vae_encoder(mixture))
        return self.project(mixture)


class QueryEncoder(nn.Module):
    """E_phi_q: the same architecture, narrower and trained, its output averaged over time: an instrument has no melody."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, queries: Tensor) -> Tensor:
        """(K, 1, T, F) standardised log-mel -> e_q (K, 8, 1, W)."""
        return self.layers(queries).mean(dim=2, keepdim=True)


class Combine(nn.Module):
    """e_m and e_q to what both encoders of a source read: their two feature axes in a row, mixed by a 1x1 convolution.

    With the features as its channels, that is a linear layer on the last axis.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * FEATURES, FEATURES)
        with (
            torch.no_grad()
        ):  # start near the sum of both: drawn at random it would scramble which feature is next to which
            self.mix.weight *= 0.1
            self.mix.weight += torch.eye(FEATURES).repeat(1, 2)

    def forward(self, mixture: Tensor, query: Tensor) -> Tensor:
        """(K, 8, L, W), a mixture's embedding beside each of its sources', and (K, 8, 1, W) -> (K, 8, L, W)."""
        return self.mix(torch.cat([mixture, query.expand_as(mixture)], dim=-1))


class TimbreEncoder(nn.Module):
    """q_phi_tau: mean and log-variance of a source's timbre latent, Eq. (5), one for all of its frames."""

    def __init__(self, shape: TimbreShape) -> None:
        super().__init__()
        width = LATENT * FEATURES
        layers: list[nn.Module] = []
        for _ in range(shape.layers):
            layers += [
                nn.Conv1d(width, width, shape.kernel, padding="same"),
                nn.GroupNorm(shape.groups, width),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, 2 * width, 1))

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(K, 8, L, W) -> mean and log-variance, each (K, 8 W), the channels slowest."""
        frames = embedding.permute(0, 1, 3, 2).flatten(1, 2)
        mean, log_variance = self.layers(frames).mean(-1).chunk(2, dim=-1)
        return mean, log_variance
