"""What distributions of stems are compared by: the Fréchet distance over log-mel statistics, of each stem and of the mixture.

The statistics are mean and deviation of 32 mel bands (to 8 kHz) over 0.37 s. That is no FAD: FAD is over an embedding that was learned.

Shapes: B samples, S stems, n audio samples, W windows, D = 64 statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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


def statistics(waves: Tensor, sample_rate: int) -> Tensor:
    """(B, S, n) -> (S + 1, W, D): of the stems and of their sum, over windows of SECONDS (or all of it, where it is shorter)."""
    spec = mel_spec(sample_rate)
    size = min(round(SECONDS * sample_rate / spec.hop) * spec.hop, waves.shape[-1])
    windows = torch.cat([waves, waves.sum(1, keepdim=True)], dim=1).unfold(-1, size, size)  # (B, S + 1, k, size)
    found = []
    for part in windows.split(CHUNK):
        mel = log_mel(part, spec)
        found.append(torch.cat([mel.mean(-1), mel.std(-1)], dim=-1))
    return torch.cat(found).transpose(0, 1).flatten(1, 2)


@dataclass(frozen=True)
class Comparison:
    """Distances to ``reference`` (B, S, n), figure by figure."""

    stems: Sequence[str]
    sample_rate: int
    reference: Tensor

    def one(self, name: str, waves: Tensor) -> Figures:
        """Of ``waves`` (B, S, n): NAME_frechet_... of each stem, their mean ("stems") and the mixture ("total")."""
        return {f"{name}_frechet_{track}": value for track, value in self._distances(waves).items()}

    def seeds(self, name: str, draws: Sequence[Tensor]) -> Figures:
        """The mean over several draws of everything, with its interval."""
        found = [self._distances(waves) for waves in draws]
        return {f"{name}_frechet_{track}": mean(torch.tensor([one[track] for one in found])) for track in found[0]}

    @cached_property
    def _known(self) -> Tensor:
        return statistics(self.reference, self.sample_rate)

    def _distances(self, waves: Tensor) -> dict[str, float]:
        pairs = zip(self._known, statistics(waves, self.sample_rate), strict=True)
        *each, total = (frechet_distance(one, other) for one, other in pairs)
        return {"total": total, "stems": sum(each) / len(each)} | dict(zip(self.stems, each, strict=True))
