"""What makes one recording of two: masks, the cascade over what they let through, and the level of both recordings.

Shapes: B samples, C latent channels, L frames; latents are standardised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.codecs.standardisation import Standardisation
from models.jingle_d.cascade import Cascade
from models.jingle_d.config import ModelConfig
from models.jingle_d.masks import MaskGenerator

LEAST_GAIN, MOST_GAIN = 0.7, 1.5  # of the rescaling to the recordings' level
QUIET = 1e-5  # root mean square of a latent that says nothing


@dataclass(frozen=True)
class Mixed:
    """(B, C, L) each: the output, its level set; what the masks let through, at that level; and the two masks that did it."""

    latent: Tensor
    heard: Tensor
    input_mask: Tensor
    target_mask: Tensor


class Mixer(nn.Module):
    """The generator. The masks are made once a call, and those that are returned are those that were used."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.masks = MaskGenerator(channels, config.masks)
        self.cascade = Cascade(channels, config.cascade)

    def forward(self, given: Tensor, target: Tensor, scale: Standardisation) -> Mixed:
        masks = self.masks(given, target)
        return self.under(masks, given, target, scale)

    def under(self, masks: tuple[Tensor, Tensor], given: Tensor, target: Tensor, scale: Standardisation) -> Mixed:
        """The same with masks from elsewhere."""
        first, second = masks
        let_through = first * given, second * target
        made = self.cascade(*let_through).float()
        gain = level_gain(*(rms(scale.invert(x.float())) for x in (made, given, target)))
        latent = leveled(made, gain, scale)
        heard = leveled(torch.stack(let_through).float().mean(0), gain.detach(), scale)
        return Mixed(latent, heard, first.float(), second.float())


def rms(latent: Tensor) -> Tensor:
    """(B, C, L) in the codec's scale -> (B, 1, 1)."""
    return latent.square().mean((1, 2), keepdim=True).clamp_min(QUIET**2).sqrt()


def level_gain(made: Tensor, given: Tensor, target: Tensor) -> Tensor:
    """What brings a level to sqrt((r_i^2 + r_t^2) / 2), within LEAST_GAIN .. MOST_GAIN.

    Unclamped, it would blow up what is near silence, and its gradient with it.
    """
    wanted = ((given.square() + target.square()) / 2).sqrt()
    return (wanted / made).clamp(LEAST_GAIN, MOST_GAIN)


def leveled(latent: Tensor, gain: Tensor, scale: Standardisation) -> Tensor:
    """A standardised latent ``gain`` times as large in the codec's scale."""
    return scale.apply(gain * scale.invert(latent))
