"""The mask generator: for each recording, how much of every latent channel is heard in every frame.

Shapes: B samples, C latent channels, H hidden channels, L frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.jingle_d.config import MaskShape


class CrossAttention(nn.Module):
    """(B, L, H) looks at another (B, L, H). Each head forgets with the distance in time, at a pace of its own.

    The penalty is the distance times 2^(-2 i) of head i, without parameters (Press et al. 2108.12409, here in both directions): the
    first head sees but a few frames around its own, so that a mask can follow the other recording from the first steps of training.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, own), (self.key, other), (self.value, other))
        )
        place = torch.arange(own.shape[1], device=own.device)
        slopes = 2.0 ** (-2 * torch.arange(self.heads, device=own.device))
        penalty = -slopes[:, None, None] * (place[:, None] - place).abs()
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=penalty.to(query.dtype)[None])
        attended: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return attended


class MaskGenerator(nn.Module):
    """Two latents (B, C, L) -> two masks in (0, 1) of the same shape, the input's and the target's.

    Each side has two convolutions of its own; one attention, the same for both, lets either look at the other.
    """

    def __init__(self, channels: int, shape: MaskShape) -> None:
        super().__init__()
        hidden = shape.hidden
        self.sides = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels, hidden, 3, padding=1), nn.GELU(), nn.Conv1d(hidden, hidden, 3, padding=1), nn.GELU()
            )
            for _ in range(2)
        )
        self.attention = CrossAttention(hidden, shape.heads)
        self.masks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(hidden, shape.head, 3, padding=1), nn.GELU(), nn.Conv1d(shape.head, channels, 1))
            for _ in range(2)
        )

    def forward(self, given: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        sides = [side(x).transpose(1, 2) for side, x in zip(self.sides, (given, target), strict=True)]
        met = [own + self.attention(own, other) for own, other in (sides, sides[::-1])]
        first, second = (mask(x.transpose(1, 2)).sigmoid() for mask, x in zip(self.masks, met, strict=True))
        return first, second
