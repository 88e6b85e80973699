"""The VAE family of AudioLDM2 (Liu et al. 2308.05734): picture networks that shrink or grow time and frequency by 4.

They are diffusers' own modules, in three roles: encoders that are trained, a decoder that is trained (the transcriber), and the
pretrained pair that stays frozen. Pictures are time before frequency, (B, channels, T, F).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from models.codecs import load_codec
from models.codecs.tensors import freeze
from models.dismix.config import VaeShape
from pipeline.errors import UserError

CODEC = "audioldm2"
LATENT = 8  # channels


def encoder(shape: VaeShape, inputs: int, outputs: int) -> nn.Module:
    """(B, inputs, T, F) -> (B, outputs, T / 4, F / 4)."""
    return Encoder(inputs, outputs, ("DownEncoderBlock2D",) * 3, **_sizes(shape), double_z=False)


def decoder(shape: VaeShape, inputs: int, outputs: int) -> nn.Module:
    """(B, inputs, T / 4, F / 4) -> (B, outputs, T, F)."""
    return Decoder(inputs, outputs, ("UpDecoderBlock2D",) * 3, **_sizes(shape))


def _sizes(shape: VaeShape) -> dict[str, Any]:
    channels = tuple(m * shape.channels for m in shape.multipliers)
    return {"block_out_channels": channels, "layers_per_block": shape.res_blocks, "norm_num_groups": shape.groups}


def frozen_vae(shape: VaeShape, weights_hash: str | None, weights_folder: Path | None = None) -> AutoencoderKL:
    """The pretrained VAE that the data's latents were made with, in evaluation mode and without gradients of its own.

    Where the data names no weights there is no data (``typical_data``): then the architecture of ``shape`` is given as it was
    drawn, to be looked at and counted. Raises UserError where the weights are missing or other ones.
    """
    if weights_hash is None:
        vae = AutoencoderKL(
            1, 1, ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3, latent_channels=LATENT, **_sizes(shape)
        )
        freeze(vae, vae.quant_conv.weight.device)
        return vae
    codec = load_codec(CODEC, weights_folder)
    if codec.weights_hash != weights_hash:
        raise UserError(
            f"the latents were made with other weights of {CODEC} than the weights folder holds; fetch the same, or prepare "
            "the data again."
        )
    return codec.vae  # type: ignore[attr-defined]  # AudioLdm2 has it
