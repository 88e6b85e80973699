"""``meldct``: an analytic codec for log-mels with the shapes of AudioLDM2's VAE, for systems that think in its latents.

Each patch of 4 frames by 4 bands goes through an orthonormal two-dimensional DCT-II, and of its 16 coefficients the first 8 in
zig-zag order are kept: 64 bands by 400 frames become 8 channels by 100 by 16, time before frequency as the VAE has it. Channel 0 is
4 times a patch's mean; what is lost is the fast movement within 40 ms and 4 bands. The zig-zag starts along frequency, because harmonics
vary faster over four bands than notes do over four frames. On the demo corpus (``benchmarks/codecs.py`` on cocochorales_ldm_demo) the
log-mel that comes back is off by 0.2 to 0.5 dB in the mean. A waveform is got by Griffin-Lim.

Shape legend: F bands, T frames; leading dimensions are free.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from models.blocks.precision import full_precision
from models.codecs.base import MelCodec
from models.features import AUDIOLDM2, waveform

PATCH = 4
ZIG_ZAG = ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2))  # (time, frequency) of each channel


class MelDct(MelCodec):
    """(..., F, T) log-mel <-> (..., 8, T / 4, F / 4). Differentiable between mel and latent, both ways."""

    name = "meldct"
    licence = "meldct: a formula, no weights, no licence."
    differentiable = True
    mel = AUDIOLDM2

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(self.mel.sample_rate, PATCH * self.mel.hop, len(ZIG_ZAG), device)

    @full_precision
    def encode_mel(self, mels: Tensor) -> Tensor:
        """Raises ValueError where T or F is no multiple of 4."""
        mels = self._taken(mels)
        if mels.shape[-1] % PATCH or mels.shape[-2] % PATCH:
            raise ValueError(f"a mel of {tuple(mels.shape[-2:])} does not divide into patches of {PATCH} by {PATCH}")
        patches = mels.transpose(-1, -2).unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # (..., T/4, 4, F/4, 4)
        return torch.einsum("...atbf,ctf->...cab", patches, self._basis(mels.dtype))

    @full_precision
    def decode_mel(self, latent: Tensor) -> Tensor:
        latent = self._taken(latent)
        patches = torch.einsum("...cab,ctf->...atbf", latent, self._basis(latent.dtype))
        return patches.flatten(-2).flatten(-3, -2).transpose(-1, -2)

    def vocode(self, mels: Tensor) -> Tensor:
        return waveform(self._taken(mels), self.mel)

    def latent_shape(self, samples: int) -> tuple[int, ...]:
        return self.channels, samples // self.hop, self.mel.bands // PATCH

    def _basis(self, dtype: torch.dtype) -> Tensor:
        return _patch_basis(dtype, self.device)


def load(weights_folder: Path | None, device: str, sample_rate: int) -> MelDct:
    return MelDct(device)


@functools.cache
@torch.inference_mode(False)  # what is kept here must serve training too, whoever asked first
def _patch_basis(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The kept products of two orthonormal DCT-II vectors: (channels, time, frequency)."""
    place = torch.arange(PATCH, dtype=torch.float64)
    dct = math.sqrt(2 / PATCH) * torch.cos(math.pi / PATCH * place[:, None] * (place[None, :] + 0.5))
    dct[0] /= math.sqrt(2)
    return torch.stack([torch.outer(dct[t], dct[f]) for t, f in ZIG_ZAG]).to(dtype=dtype, device=device)
