"""What every codec is: a waveform on one side, a latent on the other, and what must be known to use the latent.

Shape legend: n samples, C latent channels, L latent frames; leading dimensions (batch, stems) are free.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from models.features import MelSpec, log_mel


class Codec(ABC):
    """Frozen, and not a Module: a train module that holds one must not count its weights, train them, or save them.

    ``sample_rate`` in Hz; ``hop`` samples a latent frame; ``channels`` latent channels. ``weights_hash`` is None for analytic codecs.
    """

    name: str
    licence: str  # one line for dataset cards
    differentiable: bool  # whether gradients pass through ``decode``
    weights_hash: str | None = None

    def __init__(self, sample_rate: int, hop: int, channels: int, device: str) -> None:
        self.sample_rate, self.hop, self.channels = int(sample_rate), int(hop), int(channels)
        self.device = torch.device(device)

    @abstractmethod
    def latent_shape(self, samples: int) -> tuple[int, ...]:
        """Of one channel of ``samples``; the first dimension is the latent channel."""

    @abstractmethod
    def encode(self, wave: Tensor) -> Tensor:
        """(..., n), full scale 1 -> (..., *latent_shape(n)), on the codec's device. Not standardised: see ``Standardisation``."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """The way back: (..., *latent_shape) -> (..., samples)."""


class MelCodec(Codec):
    """A codec between log-mels and latents. The waveform is on the far side of the mel: ``encode`` and ``decode`` go all the way."""

    mel: MelSpec

    @abstractmethod
    def encode_mel(self, mels: Tensor) -> Tensor:
        """(..., bands, frames) log-mel -> (..., C, frames / 4, bands / 4)."""

    @abstractmethod
    def decode_mel(self, latent: Tensor) -> Tensor:
        """(..., C, frames / 4, bands / 4) -> (..., bands, frames) log-mel."""

    @abstractmethod
    def vocode(self, mels: Tensor) -> Tensor:
        """(..., bands, frames) log-mel -> (..., frames * mel hop) waveform."""

    def encode(self, wave: Tensor) -> Tensor:
        return self.encode_mel(log_mel(wave.to(self.device), self.mel))

    def decode(self, latent: Tensor) -> Tensor:
        return self.vocode(self.decode_mel(latent))


def flattened(work: Callable[[Tensor], Tensor], batch: Tensor, dimensions: int) -> Tensor:
    """``work`` on (N, *last ``dimensions``) for all leading dimensions as one, which are put back on its result."""
    leading = batch.shape[:-dimensions]
    result = work(batch.reshape(-1, *batch.shape[-dimensions:]))
    return result.reshape(*leading, *result.shape[1:])
