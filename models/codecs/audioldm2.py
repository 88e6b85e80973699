"""``audioldm2``: the VAE and the HiFi-GAN vocoder of AudioLDM 2 (Liu et al., 2308.05734), through diffusers and transformers.

The VAE sees a mel as a picture, time before frequency: [B, 1, T, 64] -> [B, 8, T / 4, 16]. A latent is the posterior's mean (no draw: the
same mel has the same latent) times the scaling factor that the weights' own config names.

    <weights folder>/audioldm2/{vae,vocoder}/{config.json, *.safetensors}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.blocks.precision import without_autocast
from models.codecs.base import MelCodec, flattened
from models.codecs.tensors import freeze, refuse_differences
from models.codecs.weights import Weights, checked_weights
from models.features import AUDIOLDM2
from pipeline.errors import UserError


class AudioLdm2(MelCodec):
    """(..., 64, T) log-mel <-> (..., 8, T / 4, 16), T a multiple of 4; gradients pass through ``decode_mel`` and ``vocode``.

    ``vae`` and ``vocoder`` are the libraries' frozen modules, for systems that use parts of them.
    """

    name = "audioldm2"
    differentiable = True
    mel = AUDIOLDM2

    def __init__(self, weights: Weights, device: str) -> None:
        from diffusers import AutoencoderKL
        from transformers import SpeechT5HifiGan
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.vae = _pretrained(AutoencoderKL, weights.path("vae"), low_cpu_mem_usage=False)
        self.vocoder = _pretrained(SpeechT5HifiGan, weights.path("vocoder"))
        shrink = 2 ** (len(self.vae.config.block_out_channels) - 1)
        super().__init__(self.mel.sample_rate, shrink * self.mel.hop, self.vae.config.latent_channels, device)
        self.shrink, self.scaling = shrink, self.vae.config.scaling_factor
        freeze(self.vae, self.device)
        freeze(self.vocoder, self.device)
        self.licence, self.weights_hash = weights.licence, weights.identity

    def latent_shape(self, samples: int) -> tuple[int, ...]:
        return self.channels, samples // self.hop, self.mel.bands // self.shrink

    @torch.no_grad()
    @without_autocast
    def encode_mel(self, mels: Tensor) -> Tensor:
        def rows(flat: Tensor) -> Tensor:
            posterior = self.vae.encode(flat.transpose(-1, -2)[:, None]).latent_dist
            return posterior.mode() * self.scaling

        return flattened(rows, self._taken(mels), 2)

    @without_autocast
    def decode_mel(self, latent: Tensor) -> Tensor:
        def rows(flat: Tensor) -> Tensor:
            mels: Tensor = self.vae.decode(flat / self.scaling).sample
            return mels[:, 0].transpose(-1, -2)

        return flattened(rows, self._taken(latent), 3)

    @without_autocast
    def vocode(self, mels: Tensor) -> Tensor:
        """The vocoder's kernels reach a little beyond the last frame; what they add there is cut off."""
        samples = mels.shape[-1] * self.mel.hop
        return flattened(lambda flat: self.vocoder(flat.transpose(-1, -2))[:, :samples], self._taken(mels), 2)


def _pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """A library's model from a local folder of safetensors; UserError where anything is missing or left over."""
    try:
        model, facts = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be loaded as {kind.__name__} ({str(error).splitlines()[0]}).") from error
    refuse_differences(
        folder,
        missing=sorted(facts["missing_keys"]),
        unknown=sorted(facts["unexpected_keys"]),
        reshaped=sorted(str(key[0]) for key in facts["mismatched_keys"]),
    )
    return model


def load(weights_folder: Path | None, device: str, sample_rate: int) -> AudioLdm2:
    return AudioLdm2(checked_weights("audioldm2", weights_folder), device)
