"""From mels to latents of a set and back to mels: what training shows, generation writes and evaluation judges.

Shapes: B windows, N sources, M = 1 + N members (the mixture first), F mel bands, T mel frames, L = T / 4 latent frames, W features.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from models.codecs import codec_of as codec_of_data
from models.codecs.base import MelCodec
from models.dismix.ldm.model import Latents
from models.dismix.ldm.training import LdmModule

CHUNK = 16  # windows that go through the networks at once


def codec_of(module: LdmModule) -> MelCodec:
    """The codec of the run's latents, on the module's device. It holds the vocoder, which training never needs."""
    return cast(MelCodec, codec_of_data(module.data, str(module.mean.device)))


@torch.no_grad()
def encode(module: LdmModule, codec: MelCodec, mixture: Tensor, queries: Tensor) -> Latents:
    """Latents of log-mels (B, F, T) with the queries (B, N, F, T), bits and timbres at their most probable."""
    analytic = module.model.mixture_encoder.vae_encoder is None
    latent = codec.encode_mel(mixture) if analytic else mixture
    return module.model.encode(module.mixture_input(mixture, latent), module.standardise(queries))


@torch.no_grad()
def render(
    module: LdmModule, timbre: Tensor, pitch: Tensor, noise: Tensor, *, alone: bool = False,
    sampler: str | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    """Standardised latents (B, M, 8, L, W) of the set, or with ``alone`` of each member without the others.

    Args:
        timbre, pitch: (B, N, 8 W) and (B, N, 8, L, W).
        noise: standard normal (B, M, 8, L, W).
    """
    members = module.model.members(module.model.condition(timbre, pitch))
    if alone:
        noise, members = (x.flatten(0, 1)[:, None] for x in (noise, members))
    clean = module.noise.sample(
        lambda noisy, level: module.model.renderer(noisy, members, level), noise, sampler, steps
    )
    return clean.reshape(len(pitch), -1, *clean.shape[2:])


@torch.no_grad()
def to_mel(module: LdmModule, codec: MelCodec, latents: Tensor) -> Tensor:
    """Standardised latents (B, M, 8, L, W) -> log-mels (B, M, F, T), no quieter than the data's floor."""
    stored = module.members_scale(latents.shape[1]).invert(latents)
    if module.model.renderer.vae_decoder is None:
        mels = codec.decode_mel(stored)
    else:
        mels = module.model.decode_mel(stored.flatten(0, 1)).unflatten(0, stored.shape[:2])
    return mels.clamp_min(torch.log(torch.tensor(module.data["mel"]["floor"])).item())
