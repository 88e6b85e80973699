"""The body: a vision transformer over a constant-Q transform, with the dimensions and parameter names of timm's vit_tiny_patch16_224.

Dosovitskiy et al. 2010.11929, pre-norm as there. A picture is 84 bins high (padded to 96: six rows of patches) and T frames long; what
differs from a classifier is the end: rows are averaged within each time column, and every column is spoken of by itself.

Shapes: B pictures, T frames, R = 6 rows and C = ceil(T / 16) columns of patches, D width, N = 1 + R C tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from models.codecs.weights import ENVIRONMENT
from models.cqtml.config import BINS, Body
from pipeline.errors import UserError
from pipeline.files import hash_file

PATCH = 16
ROWS = -(-BINS // PATCH)
CHANNELS = 2  # log-magnitude and phase
PRETRAINED = Path("vit_tiny_patch16_224") / "model.safetensors"  # below the weights folder
PRETRAINED_GRID = 14


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, PATCH, PATCH)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 2, 84, T) -> (B, D, R, C); bins and frames that fill up the last patches are zero, the mean of the data."""
        bins, frames = picture.shape[-2:]
        return self.proj(F.pad(picture, (0, -frames % PATCH, 0, -bins % PATCH)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D), every token to every other."""
        batch, count, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(batch, count, width)))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(tokens))))


class Block(nn.Module):
    def __init__(self, shape: Body) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = Attention(shape.width, shape.heads, shape.dropout)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = Mlp(shape.width, shape.mlp_ratio * shape.width, shape.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(nn.Module):
    """(B, 2, 84, T) standardised -> (B, C, ``outputs``), for any T."""

    def __init__(self, shape: Body, outputs: int) -> None:
        super().__init__()
        self.columns = shape.columns
        self.patch_embed = PatchEmbed(shape.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + ROWS * shape.columns, shape.width))
        self.pos_drop = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, outputs)
        nn.init.normal_(self.cls_token, std=1e-6)
        for layer in self.modules():  # as in timm: small, so that a column begins by speaking of itself
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, picture: Tensor) -> Tensor:
        patches = self.patch_embed(picture)
        columns = patches.shape[-1]
        first, positions = self._positions(columns)
        tokens = torch.cat(
            [(self.cls_token + first).expand(len(patches), -1, -1), (patches + positions).flatten(2).mT], 1
        )
        tokens = self.pos_drop(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        grid = self.norm(tokens)[:, 1:].unflatten(1, (ROWS, columns))
        return self.head(grid.mean(1))  # rows of one column, never of another: what is said of a time is of that time

    def _positions(self, columns: int) -> tuple[Tensor, Tensor]:
        """Of the class token (1, 1, D) and of the patches (1, D, R, C), interpolated along time where C is not the learned length."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = rest.unflatten(1, (ROWS, self.columns)).permute(0, 3, 1, 2)
        if columns != self.columns:
            grid = F.interpolate(grid, size=(ROWS, columns), mode="bilinear", align_corners=False)
        return first, grid

    def load_pretrained(self, folder: Path | None) -> dict[str, str]:
        """timm's ImageNet weights from ``folder``/vit_tiny_patch16_224/model.safetensors; the head stays as it is.

        Colours are averaged into both channels, learned positions stretched over our grid. Returns the file's xxh3_128 by its name.
        UserError where the file is missing or is of another network.
        """
        path = (folder or Path()) / PRETRAINED
        if folder is None or not path.is_file():
            where = f"{path} is not there" if folder else f"no weights folder is named (set {ENVIRONMENT}=DIR)"
            raise UserError(f"{where}; put timm's weights at DIR/{PRETRAINED}, or set model.body.pretrained=false.")
        weights = {name: value for name, value in load_file(path).items() if not name.startswith("head.")}
        try:
            colours = weights["patch_embed.proj.weight"]  # (D, 3, 16, 16)
            weights["patch_embed.proj.weight"] = colours.sum(1, keepdim=True).expand(-1, CHANNELS, -1, -1) / CHANNELS
            places = weights["pos_embed"]
            square = places[:, 1:].unflatten(1, (PRETRAINED_GRID, PRETRAINED_GRID)).permute(0, 3, 1, 2)
            size = (ROWS, self.columns)
            stretched = F.interpolate(square, size=size, mode="bicubic", align_corners=False).flatten(2).mT
            weights["pos_embed"] = torch.cat([places[:, :1], stretched], 1)
            lacking, unknown = self.load_state_dict(weights, strict=False)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path} is not vit_tiny_patch16_224: {' '.join(str(error).split())}") from None
        if unknown or set(lacking) != {"head.weight", "head.bias"}:
            raise UserError(f"{path} is not vit_tiny_patch16_224: it lacks {lacking} and has {unknown} beside.")
        return {str(PRETRAINED): hash_file(path)}
