"""From noise to latents: in one step, in two, in n, by a consistency model; by Heun's method in n steps of diffusion.

What is known of the result (stems that are given, frames that an earlier window made) is put in at every level of noise. Nothing is
clamped, and the step to zero noise is made.

Shapes: B samples, S stems, C latent channels, L frames. A ``Denoise`` takes (B, S, C, L) and sigma (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cd4mt.config import ModelConfig
from models.cd4mt.schedules import karras_sigmas

Denoise = Callable[[Tensor, Tensor], Tensor]
NEGLIGIBLE = 0.02  # of sigma_data: noise below which a consistency model is not asked once more
DIFFUSION_STEPS = 35  # what diffusion takes where nothing is said
GIVEN_STEPS = 8  # of a consistency model where something is given: its first levels hardly show it


@dataclass(frozen=True)
class Known:
    """``latents`` (B, S, C, L) where ``mask`` (B, S, 1, L) is true."""

    latents: Tensor
    mask: Tensor

    def put(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """``x`` with the known part in it, with that noise on it."""
        return torch.where(self.mask, self.latents if noise is None else self.latents + noise, x)


def levels(config: ModelConfig, steps: int) -> list[float]:
    """The noise levels at which a consistency model is asked; the answer at the last one is the result."""
    if steps == 2:
        return [config.sigma_max, config.middle]
    lowest = max(config.sigma_min, NEGLIGIBLE * config.sigma_data)
    return karras_sigmas(steps, lowest, config.sigma_max, config.rho).tolist()


@torch.no_grad()
def consistency(
    denoise: Denoise, noises: Sequence[Tensor], sigmas: Sequence[float], known: Known | None = None
) -> Tensor:
    """Multistep consistency sampling (2303.01469, Algorithm 1): a fresh ``noise`` for every level. NFE: len(sigmas)."""
    found = torch.zeros_like(noises[0])
    for sigma, noise in zip(sigmas, noises, strict=True):
        x = found + sigma * noise
        if known is not None:
            x = known.put(x, sigma * noise)
        found = denoise(x, x.new_full((len(x),), sigma))
    return found if known is None else known.put(found)


@torch.no_grad()
def heun(denoise: Denoise, noise: Tensor, sigmas: Sequence[float], known: Known | None = None) -> Tensor:
    """Karras et al. 2206.00364, Algorithm 1, from the first of descending ``sigmas`` to 0. NFE: 2 len(sigmas) - 1."""
    x = sigmas[0] * noise
    for now, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        if known is not None:
            x = known.put(x, now * noise)
        slope = (x - denoise(x, x.new_full((len(x),), now))) / now
        moved = x + (after - now) * slope
        if after:
            again = (moved - denoise(moved, x.new_full((len(x),), after))) / after
            moved = x + (after - now) * (slope + again) / 2
        x = moved
    return x if known is None else known.put(x)
