"""From two latents of any length to one recording: windows as long as the networks were trained on, blended, and decoded as a whole.

Shapes: B pairs, C latent channels, L frames of the whole, T of a window, W windows, n audio samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.jingle_d.mixer import Mixed
from models.jingle_d.train_module import TrainModule
from models.windows import overlap_add, window_starts

AT_ONCE = 8  # pairs that go through the networks together, a window of each
STREAM = "jingle_d/random masks"


@dataclass(frozen=True)
class Rendered:
    """``wave`` (B, n), and the masks (B, C, L) that were used."""

    wave: Tensor
    input_mask: Tensor
    target_mask: Tensor


@torch.no_grad()
def render(module: TrainModule, given: Tensor, target: Tensor, *, random_masks: bool = False) -> Rendered:
    """Standardised latents (B, C, L) -> what the trained networks make of them.

    Output and masks are blended where windows overlap, before anything is decoded: there is no seam that a decoder could make audible.

    Args:
        random_masks: U(0, 1) in place of the mask generator's, for comparison; always the same.
    """
    length = given.shape[-1]
    window = min(module.frames, length)
    starts = window_starts(length, window)
    made = [_window(module, given[..., s : s + window], target[..., s : s + window], random_masks) for s in starts]
    latent, first, second = (
        overlap_add(torch.stack([getattr(mixed, name) for mixed in made]), starts, length)
        for name in ("latent", "input_mask", "target_mask")
    )
    return Rendered(module.decode(latent), first, second)


def _window(module: TrainModule, given: Tensor, target: Tensor, random_masks: bool) -> Mixed:
    """A window of every pair, AT_ONCE pairs at a time."""
    made = []
    for pair in zip(given.split(AT_ONCE), target.split(AT_ONCE), strict=True):
        if random_masks:
            positions = torch.arange(2 * len(pair[0]))
            masks = module.random.uniform(STREAM, positions, given.shape[1:], given.device).unflatten(0, (2, -1))
            made.append(module.mixer.under((masks[0], masks[1]), *pair, module.scale))
        else:
            made.append(module.mixer(*pair, module.scale))
    return Mixed(*(torch.cat([getattr(mixed, name) for mixed in made]) for name in Mixed.__dataclass_fields__))


def as_long_as(latent: Tensor, length: int) -> Tensor:
    """(..., C, L) -> (..., C, ``length``): cut, or begun again as often as it takes."""
    times = -(-length // latent.shape[-1])
    return latent.repeat(*[1] * (latent.ndim - 1), times)[..., :length]
