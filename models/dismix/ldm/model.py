"""DisMix, LDM case, the whole: a mixture and a query per instrument in; pitch, timbre, and latents of new sources out (Section 5).

Shapes: B mixtures, N sources of each, M = 1 + N members of a set (the mixture first), P pitch classes, T mel frames, F = 64 mel bands,
L = T / 4 latent frames, W = F / 4 = 16 features, 8 latent channels. Everything of a source keeps its own axis N outside the encoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from models.blocks.frozen import WithFrozenParts
from models.dismix.config import LdmCase, ModelConfig
from models.dismix.ldm import over_time
from models.dismix.ldm.dit import Dit
from models.dismix.ldm.encoders import FEATURES, Combine, MixtureEncoder, QueryEncoder, TimbreEncoder
from models.dismix.ldm.pitch import PitchEncoder, Transcriber, Translator
from models.dismix.ldm.vae import LATENT, encoder

TIMBRE = LATENT * FEATURES  # width of the timbre latent
BANDS = 4 * FEATURES  # of a mel


def _networks(sizes: LdmCase) -> tuple[nn.Module, nn.Module, nn.Module]:
    """What encodes queries, what transcribes and what translates: the paper's picture networks, or those over time."""
    classes, small = sizes.pitch_classes, sizes.over_time
    if small:
        return (
            over_time.Encoder(small, small.query_encoder, BANDS),
            over_time.Transcriber(small, classes),
            over_time.Encoder(small, small.translator, classes),
        )
    return (
        encoder(sizes.query_encoder, 1, LATENT),
        Transcriber(sizes.transcriber, classes),
        Translator(sizes.translator),
    )


@dataclass(frozen=True)
class Latents:
    """All that the encoders say of a batch."""

    query_embedding: Tensor  # e_q (B, N, 8 W)
    pitch_logits: Tensor  # y-hat (B, N, T, P), before binarisation
    pitch: Tensor  # nu (B, N, 8, L, W)
    timbre_mean: Tensor  # (B, N, 8 W)
    timbre_log_variance: Tensor  # (B, N, 8 W)
    timbre: Tensor  # tau (B, N, 8 W): a draw in training, the mean in evaluation


class Renderer(nn.Module):
    """The DiT and the frozen pair between whose ends it works: the VAE's encoder made the latents, its decoder ends them."""

    def __init__(self, dit: Dit, vae_encoder: nn.Module | None, vae_decoder: nn.Module | None) -> None:
        super().__init__()
        self.dit, self.vae_encoder, self.vae_decoder = dit, vae_encoder, vae_decoder

    def forward(self, noisy: Tensor, condition: Tensor, level: Tensor, alone: Tensor | None = None) -> Tensor:
        """z_t (B, M, 8, L, W) of all or some members of a set -> their z_0; see ``Dit.forward``."""
        return self.dit(noisy, condition, level, alone)


class Likelihood(nn.Module):
    """log p(z | S), a Gaussian of learned scale around what is rendered: the first term of Eq. (6)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))


class LdmDisMix(WithFrozenParts):
    """Encoders, binarisation and diffusion transformer of the LDM case; ``vae`` None: the codec is analytic and lies outside."""

    frozen = ("mixture_encoder.vae_encoder", "renderer.vae_encoder", "renderer.vae_decoder", "codec")

    def __init__(self, config: ModelConfig, vae: AutoencoderKL | None) -> None:
        super().__init__()
        sizes = config.ldm
        query_layers, transcriber, translator = _networks(sizes)
        self.query_encoder = QueryEncoder(query_layers)
        self.mixture_encoder = MixtureEncoder(vae.encoder if vae else None)
        self.combine_conv = Combine()
        self.pitch_encoder = PitchEncoder(transcriber, translator, config.stochastic_binarisation)
        self.timbre_encoder = TimbreEncoder(sizes.timbre_encoder)
        self.renderer = Renderer(Dit(sizes.dit), vae.encoder if vae else None, vae.decoder if vae else None)
        self.elbo = Likelihood()
        # What the VAE has between its networks and its latents belongs to the codec, not to any of the encoders
        between = {"quantise": vae.quant_conv, "restore": vae.post_quant_conv} if vae else {}
        self.codec = nn.ModuleDict(cast(dict[str, nn.Module], between))
        self.scaling = float(vae.config["scaling_factor"]) if vae else 1.0

    def train(self, mode: bool = True) -> LdmDisMix:
        super().train(mode)
        for part in (self.renderer.vae_encoder, self.renderer.vae_decoder, self.codec):
            if part is not None:
                part.eval()
        return self

    def encode(
        self, mixture: Tensor, queries: Tensor, threshold: Tensor | float = 0.5, noise: Tensor | None = None
    ) -> Latents:
        """Latents of every queried source.

        Args:
            mixture: what ``MixtureEncoder`` takes, (B, 1, T, F) or (B, 8, L, W).
            queries: (B, N, F, T) standardised log-mel, each another clip of its source's instrument.
            threshold: of the binarisation, (B, N, T, P) or one number.
            noise: (B, N, 8 W) standard normal for the timbre draw; None takes the posterior's mean.
        """
        lead = queries.shape[:2]
        e_m = self.mixture_encoder(mixture, self.codec["quantise"] if self.codec else None)
        e_q = self.query_encoder(queries.flatten(0, 1).transpose(-1, -2)[:, None])
        joint = self.combine_conv(e_m.repeat_interleave(lead[1], dim=0), e_q)
        if isinstance(threshold, Tensor):
            threshold = threshold.flatten(0, 1)
        logits, pitch = self.pitch_encoder(joint, threshold)
        mean, log_variance = self.timbre_encoder(joint)
        e_q, logits, pitch, mean, log_variance = (
            x.unflatten(0, lead) for x in (e_q.flatten(1), logits, pitch, mean, log_variance)
        )
        timbre = mean if noise is None else mean + noise * torch.exp(0.5 * log_variance)
        return Latents(e_q, logits, pitch, mean, log_variance, timbre)

    def condition(self, timbre: Tensor, pitch: Tensor) -> Tensor:
        """s of each source, its timbre (B, N, 8 W) beside its pitch (B, N, 8, L, W) in every frame: (B, N, 8, L, 2 W)."""
        held = timbre.unflatten(-1, (LATENT, 1, FEATURES)).expand_as(pitch)
        return torch.cat([pitch, held], dim=-1)

    def members(self, sources: Tensor) -> Tensor:
        """S = (B, N, 8, L, 2 W) -> the conditions of the whole set (B, M, 8, L, 2 W).

        The mixture is its first member; its condition is the sum of the sources', as its audio is the sum of theirs.
        """
        return torch.cat([sources.sum(1, keepdim=True), sources], dim=1)

    def decode_mel(self, latents: Tensor) -> Tensor:
        """Latents of the frozen VAE as prepared, (K, 8, L, W) -> log-mel (K, F, T). Only where there is a VAE."""
        assert self.renderer.vae_decoder is not None
        mel: Tensor = self.renderer.vae_decoder(self.codec["restore"](latents / self.scaling))
        return mel[:, 0].transpose(-1, -2)
