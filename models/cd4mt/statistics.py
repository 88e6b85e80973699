"""What distributions of stems are compared by: the Fréchet distance over log-mel statistics, of each stem and of the mixture.

The statistics are mean and deviation of 32 mel bands (to 8 kHz) over 0.37 s. That is no FAD: FAD is over an embedding that was learned. A
mel codec's latents are compared by the mels that they decode to: what a vocoder makes of them is the same for data and draws. Mels of a
mixture are then the root of the stems' squares, as where phases do not agree.

Shapes: B samples, S stems, n audio samples, F = 32 bands, T frames, W windows, D = 64 statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.cd4mt import data as facts
from models.cd4mt.train_module import TrainModule
from models.codecs import codec_of
from models.codecs.base import MelCodec
from models.features import MelSpec, log_mel
from models.metrics import Figure, frechet_distance, mean

BANDS = 32
RESOLUTION = 2048 / 44100  # seconds of a spectrum's window, rounded to a power of two of samples
SECONDS = 16384 / 44100  # of which the statistics are taken
CHUNK = 16  # samples of which mels are computed at once

Figures = dict[str, Figure | float]


def mel_spec(sample_rate: int, bands: int = BANDS) -> MelSpec:
    """Mels of about RESOLUTION at any rate, a quarter of it apart."""
    window = 1 << round(math.log2(RESOLUTION * sample_rate))
    return MelSpec(sample_rate=sample_rate, bands=bands, window=window, hop=window // 4)


@dataclass(frozen=True)
class Spectra:
    """``log_mels`` (B, S + 1, F, T) of the stems and of their mixture, T a second ``rate``."""

    log_mels: Tensor
    rate: float

    def statistics(self) -> Tensor:
        """(S + 1, W, D): of windows of SECONDS, or of all there is where it is shorter."""
        size = min(round(SECONDS * self.rate), self.log_mels.shape[-1])
        windows = self.log_mels.unfold(-1, size, size)  # (B, S + 1, F, k, size)
        found = torch.cat([windows.mean(-1), windows.std(-1)], dim=2)
        return found.permute(1, 0, 3, 2).flatten(1, 2)


def spectra_of_audio(waves: Tensor, sample_rate: int) -> Spectra:
    """Of (B, S, n)."""
    spec = mel_spec(sample_rate)
    every = torch.cat([waves, waves.sum(1, keepdim=True)], dim=1).cpu()
    return Spectra(torch.cat([log_mel(part, spec) for part in every.split(CHUNK)]), sample_rate / spec.hop)


def spectra(module: TrainModule, latents: Tensor) -> Spectra:
    """Of (B, S, C, L) of deviation sigma_data."""
    codec = codec_of(module.data, module.latent_mean.device.type)
    stored = facts.as_stored(module.scale.invert(latents), module.data)
    if not isinstance(codec, MelCodec):
        return spectra_of_audio(codec.decode(stored), codec.sample_rate)
    return spectra_of_mels(codec.decode_mel(stored).cpu(), codec.mel)


def spectra_of_mels(log_mels: Tensor, spec: MelSpec) -> Spectra:
    """Of the stems' (B, S, bands, T)."""
    least = math.log(spec.floor)
    stems = log_mels.clamp_min(least)
    mixture = (2 * stems).logsumexp(1, keepdim=True) / 2
    every = torch.cat([stems, mixture], dim=1).unflatten(2, (BANDS, -1)).mean(3)
    return Spectra(every, spec.sample_rate / spec.hop)


@dataclass(frozen=True)
class Comparison:
    """Distances to ``reference``, figure by figure."""

    stems: Sequence[str]
    reference: Spectra

    def one(self, name: str, found: Spectra) -> Figures:
        """NAME_frechet_... of each stem, their mean ("stems") and the mixture ("total")."""
        return {f"{name}_frechet_{track}": value for track, value in self.distances(found).items()}

    def seeds(self, name: str, draws: Sequence[Spectra]) -> Figures:
        """The mean over several draws of everything, with its interval."""
        found = [self.distances(draw) for draw in draws]
        return {f"{name}_frechet_{track}": mean(torch.tensor([one[track] for one in found])) for track in found[0]}

    @cached_property
    def _known(self) -> Tensor:
        return self.reference.statistics()

    def distances(self, found: Spectra) -> dict[str, float]:
        """Of each stem, of their mean ("stems") and of the mixture ("total")."""
        *each, total = (
            frechet_distance(one, other) for one, other in zip(self._known, found.statistics(), strict=True)
        )
        return {"total": total, "stems": sum(each) / len(each)} | dict(zip(self.stems, each, strict=True))
