"""DisMix, simple case, the whole: a mixture and a query per instrument in; pitch, timbre, and spectrograms out.

Shapes: B mixtures, N sources of each, C mel bands (128), T frames (10), D latent width (64), P pitch classes.
Everything of a source keeps its own axis N, so a source is never paired with another mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.dismix.binarisation import binarise
from models.dismix.config import ModelConfig
from models.dismix.simple.decoder import Decoder, FiLM
from models.dismix.simple.encoders import SpectrogramEncoder, TimbreEncoder, Transcriber, Translator


@dataclass(frozen=True)
class Latents:
    """All that the encoders say of a batch."""

    mixture_embedding: Tensor  # e_m (B, D)
    query_embedding: Tensor  # e_q (B, N, D)
    pitch_logits: Tensor  # y-hat (B, N, P), before binarisation
    pitch: Tensor  # nu (B, N, D)
    timbre_mean: Tensor  # (B, N, D)
    timbre_log_variance: Tensor  # (B, N, D)
    timbre: Tensor  # tau (B, N, D): a draw in training, the mean in evaluation


class DisMix(nn.Module):
    """Encoders, binarisation, FiLM and decoder of the simple case (Section 4)."""

    def __init__(self, config: ModelConfig, mel_bands: int, pitches: int) -> None:
        super().__init__()
        sizes = config.simple
        self.stochastic_binarisation = config.stochastic_binarisation
        self.mixture_encoder = SpectrogramEncoder(mel_bands, sizes.width, sizes.latent)
        self.query_encoder = SpectrogramEncoder(mel_bands, sizes.width, sizes.latent)
        self.transcriber = Transcriber(sizes.latent, sizes.hidden, sizes.depth, pitches)
        self.translator = Translator(pitches, sizes.translator, sizes.latent)
        self.timbre_encoder = TimbreEncoder(sizes.latent, sizes.hidden, sizes.depth)
        self.film = FiLM(sizes.latent)
        self.decoder = Decoder(sizes.latent, sizes.gru, mel_bands)

    def encode(
        self, mixture: Tensor, queries: Tensor, threshold: Tensor | float = 0.5, noise: Tensor | None = None
    ) -> Latents:
        """Latents of every queried source.

        Args:
            mixture: (B, C, T) standardised log-mel.
            queries: (B, N, C, T), each another clip of its source's instrument.
            threshold: of the binarisation, (B, N, P) or one number.
            noise: (B, N, D) standard normal for the timbre draw; None takes the posterior's mean.
        """
        e_m = self.mixture_encoder(mixture)
        e_q = self.query_encoder(queries.flatten(0, 1)).unflatten(0, queries.shape[:2])
        both = torch.cat([e_m[:, None].expand_as(e_q), e_q], dim=-1)
        logits = self.transcriber(both)
        mean, log_variance = self.timbre_encoder(both)
        timbre = mean if noise is None else mean + noise * torch.exp(0.5 * log_variance)
        return Latents(e_m, e_q, logits, self.pitch_latent(logits, threshold), mean, log_variance, timbre)

    def pitch_latent(self, logits: Tensor, threshold: Tensor | float = 0.5) -> Tensor:
        """nu (..., D) from pitch logits (..., P), Eq. (3); without the layer of Eq. (4) the logits themselves go on."""
        if not self.stochastic_binarisation:
            return self.translator(logits)
        return self.translator(binarise(torch.sigmoid(logits), threshold))

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """(..., D) source latents, their sum, or e_m -> (..., C, T) standardised log-mel."""
        return self.decoder(latents, frames)

    def render(self, timbre: Tensor, pitch: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Sources (B, N, C, T) of these latents (B, N, D) and their mixture (B, C, T), standardised log-mels."""
        sources = self.film(timbre, pitch)
        return self.decode(sources, frames), self.decode(sources.sum(1), frames)
