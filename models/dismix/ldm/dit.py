"""The diffusion transformer (Peebles and Xie 2212.09748) over the latents of a set: patches of a mixture and of all its sources.

Shapes: B sets, M members of each, L latent frames, W = 16 features, 8 latent channels, n = L / patch patches a member,
D = 8 W patch width of a patch, 2 D of its condition.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.precision import kept_for_all
from models.dismix.config import DitShape
from models.dismix.ldm.encoders import FEATURES
from models.dismix.ldm.vae import LATENT


def partition(latents: Tensor, patch: int) -> Tensor:
    """(..., 8, L, w) -> (..., L / patch, patch * w * 8): each patch has all channels and features of ``patch`` frames."""
    frames = latents.movedim(-3, -1)  # (..., L, w, 8)
    return frames.unflatten(-3, (-1, patch)).flatten(-3)


def assemble(patches: Tensor, patch: int) -> Tensor:
    """The inverse of ``partition`` where w = W."""
    frames = patches.unflatten(-1, (patch, FEATURES, LATENT)).flatten(-4, -3)
    return frames.movedim(-1, -3)


@kept_for_all
def positions(count: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Sinusoids (count, width) of a patch's place within its member (Vaswani et al. 2017); members have no order."""
    rate = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(device, dtype)


class Block(nn.Module):
    """Attention, then two linears; behind each the residual sum is normalised, scaled and shifted by the condition."""

    def __init__(self, width: int, shape: DitShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, shape.feed_forward), nn.GELU(), nn.Linear(shape.feed_forward, width)
        )
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(2 * width, 4 * width)

    def forward(self, patches: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M n, D) with conditions (B, M n, 2 D); ``mask`` (B, 1, M n, M n) is true where a patch may look."""
        scale_a, shift_a, scale_f, shift_f = self.modulation(condition).chunk(4, dim=-1)
        q, k, v = self.qkv(patches).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        patches = self.attention_norm(patches + self.out(seen)) * (1 + scale_a) + shift_a
        return self.feed_forward_norm(patches + self.feed_forward(patches)) * (1 + scale_f) + shift_f


class Dit(nn.Module):
    """theta: noisy latents of a set, what each member is to become, and the level of noise -> the clean latents z_0.

    There is no projection on the way in: a patch is as wide as the transformer. On the way out a 1x1 convolution weighs what the blocks
    say against the noisy latents themselves, which are nearly clean where there is little noise.
    """

    def __init__(self, shape: DitShape) -> None:
        super().__init__()
        self.patch, width = shape.patch, LATENT * FEATURES * shape.patch
        self.level = nn.Sequential(nn.Linear(1, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.entry = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, shape) for _ in range(shape.blocks))
        self.exit = nn.Conv2d(2 * LATENT, LATENT, 1)

    def forward(self, noisy: Tensor, condition: Tensor, level: Tensor, alone: Tensor | None = None) -> Tensor:
        """z_t (B, M, 8, L, W) -> z_0 of the same shape.

        Args:
            condition: (B, M, 8, L, 2 W), the source latents s and whatever the other members are made of.
            level: (B,) log signal-to-noise ratio of z_t.
            alone: (B,) true where no member may look at another; None: all see all.
        """
        members = noisy.shape[1]
        patches = partition(noisy, self.patch)  # (B, M, n, D)
        count = patches.shape[2]
        place = positions(count, patches.shape[-1], patches.dtype, patches.device)
        hidden = self.entry(patches + place).flatten(1, 2)
        told = partition(condition, self.patch).flatten(1, 2) + self.level(level[:, None] / 4)[:, None]
        mask = None if alone is None else _own_member(members, count, alone)
        for block in self.blocks:
            hidden = block(hidden, told, mask)
        said = assemble(hidden.unflatten(1, (members, count)), self.patch)
        both = torch.cat([said, noisy], dim=2).flatten(0, 1)
        return self.exit(both).unflatten(0, (-1, members))


def _own_member(members: int, count: int, alone: Tensor) -> Tensor:
    """(B, 1, M n, M n): where each patch may look."""
    member = torch.arange(members, device=alone.device).repeat_interleave(count)
    return (member[:, None] == member) | ~alone[:, None, None, None]
