"""Zero mean and unit deviation of latents, by the statistics that the latent shards' manifest carries.

Codecs do not standardise: statistics fixed in code would fit no data but those they were taken from. ``prepare.py --codec`` takes them of
the training split, over time, for every channel of every leading axis (stems differ more than songs do), exactly and once; they are part
of the manifest and so of a run's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAST = 1e-6  # a channel that never moves (a stem that is always silent) is centred and left at its scale


@dataclass(frozen=True)
class Standardisation:
    """``mean`` and ``std``: (*leading, C, 1...), one 1 for every axis of a latent behind its channels; float32."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_info(cls, info: Mapping[str, Any], field: str, device: str = "cpu") -> Standardisation:
        """Of ``field`` (``stems_latent``) in a manifest's ``info``. KeyError where it has no such latents."""
        facts = info["latent"]["fields"][field]
        mean, std = (torch.tensor(facts[name], dtype=torch.float32, device=device) for name in ("mean", "std"))
        behind = (1,) * (len(facts["shape"]) - mean.ndim)
        return cls(mean.reshape(*mean.shape, *behind), std.reshape(*std.shape, *behind))

    def pooled(self, axes: int) -> Standardisation:
        """One mean and deviation a channel for all of the first ``axes`` axes, as if they were one: shape (C, 1...)."""
        over = tuple(range(axes))
        mean = self.mean.mean(over)
        return Standardisation(mean, ((self.std**2 + self.mean**2).mean(over) - mean**2).clamp(min=0).sqrt())

    def apply(self, latent: Tensor) -> Tensor:
        """Latents as stored, (B, *leading, C, ...), any float -> float32 of mean 0 and deviation 1 over the training split."""
        return (latent.float() - self.mean) / self._scale

    def invert(self, latent: Tensor) -> Tensor:
        """What the codec's ``decode`` wants."""
        return latent * self._scale + self.mean

    @property
    def _scale(self) -> Tensor:
        return torch.where(self.std < LEAST, torch.ones_like(self.std), self.std)
