"""The U-Net of Dhariwal and Nichol (2105.05233) on one axis or two, without scale-shift normalisation, resampled by convolutions.

Modules bear the names of the published code (``input_blocks``, ``middle_block``, ``output_blocks``...): weights trained with it fit.

Shapes: B samples, C channels, (...) one axis (L) or two (H, W), each a multiple of ``UNet.shrink``; E width of the noise embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cd4mt.config import UnetShape

GROUPS = 32  # of the normalisation, where the channels allow two to a group
FAINT = 0.2  # of the usual size: what a residual branch and the output begin with; the published code begins with 0,
# which keeps the gradient of the first step from everything below
PERIOD = 10000.0


def convolution(axes: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def faint(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(FAINT)
    return module


class GroupNorm(nn.GroupNorm):
    """In float32 always; ``scaling`` False: without the learned scale (NsLN of 2502.01441, for groups)."""

    def __init__(self, channels: int, shape: UnetShape) -> None:
        super().__init__(math.gcd(GROUPS, shape.channels // 2), channels)
        if shape.norm == "non_scaling":
            self.weight = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Residual(nn.Module):
    """Two convolutions, the noise embedding added between them."""

    def __init__(self, axes: int, inputs: int, outputs: int, embedding: int, shape: UnetShape) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(inputs, shape), nn.SiLU(), convolution(axes, inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.out_layers = nn.Sequential(
            GroupNorm(outputs, shape),
            nn.SiLU(),
            nn.Dropout(shape.dropout),
            faint(convolution(axes, outputs, outputs)),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else convolution(axes, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.in_layers(x)
        told = self.emb_layers(embedding).reshape(*hidden.shape[:2], *(1,) * (hidden.ndim - 2))
        return self.skip_connection(x) + self.out_layers(hidden + told)


class Attention(nn.Module):
    """All places look at all others. Softmax is spelled out: fused kernels have no forward-mode derivative, which sCM takes, and
    at these few hundred places they are no faster (on a CPU 0.98 to 1.05 of the time, forwards and backwards)."""

    def __init__(self, channels: int, shape: UnetShape) -> None:
        super().__init__()
        self.heads = channels // shape.head_channels
        self.norm = GroupNorm(channels, shape)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = faint(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        places = x.flatten(2)
        q, k, v = self.qkv(self.norm(places)).unflatten(1, (3, self.heads, -1)).unbind(1)  # (B, heads, c, n) each
        weight = torch.einsum("bhcn,bhcm->bhnm", q, k).float() / math.sqrt(q.shape[2])
        seen = torch.einsum("bhnm,bhcm->bhcn", weight.softmax(-1).to(v.dtype), v).flatten(1, 2)
        return x + self.proj_out(seen).reshape(x.shape)


class Downsample(nn.Module):
    def __init__(self, axes: int, channels: int) -> None:
        super().__init__()
        self.op = convolution(axes, channels, channels, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, axes: int, channels: int) -> None:
        super().__init__()
        self.conv = convolution(axes, channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.ModuleList):
    """Modules one after the other; all but plain convolutions are told the noise."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for module in self:
            x = module(x) if isinstance(module, nn.Conv1d | nn.Conv2d) else module(x, embedding)
        return x


class Shortcut(nn.Module):
    """The input past the network, each channel times a factor of the noise level.

    Between its first and its last convolution a network narrower than its input cannot hold the noise of every channel, which the
    preconditioning makes it subtract again: at sigma = sigma_data half of it. This takes it from there.
    """

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.factors = nn.Linear(embedding, channels)
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        factors = self.factors(F.silu(embedding))
        return factors.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) * x


class UNet(nn.Module):
    """(B, ``channels``, ...) and the noise level (B,) -> the same shape."""

    def __init__(self, axes: int, channels: int, shape: UnetShape) -> None:
        super().__init__()
        self.width, self.shrink = shape.channels, 2 ** (len(shape.multipliers) - 1)
        embedding = 4 * shape.channels
        self.time_embed = nn.Sequential(
            nn.Linear(shape.channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )

        def block(inputs: int, outputs: int, shrunk: int) -> list[nn.Module]:
            residual = Residual(axes, inputs, outputs, embedding, shape)
            return [residual, Attention(outputs, shape)] if shrunk in shape.attention else [residual]

        widths = [m * shape.channels for m in shape.multipliers]
        now = widths[0]
        self.input_blocks = nn.ModuleList([Stage([convolution(axes, channels, now)])])
        kept = [now]
        for level, width in enumerate(widths):
            for _ in range(shape.res_blocks):
                self.input_blocks.append(Stage(block(now, width, 2**level)))
                kept.append(now := width)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage([Downsample(axes, now)]))
                kept.append(now)
        middle = (Residual(axes, now, now, embedding, shape) for _ in range(2))
        self.middle_block = Stage([next(middle), Attention(now, shape), next(middle)])
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for number in range(shape.res_blocks + 1):
                stage = block(now + kept.pop(), width, 2**level)
                now = width
                if level and number == shape.res_blocks:
                    stage.append(Upsample(axes, now))
                self.output_blocks.append(Stage(stage))
        self.out = nn.Sequential(GroupNorm(now, shape), nn.SiLU(), faint(convolution(axes, now, channels)))
        self.shortcut = Shortcut(embedding, channels) if shape.shortcut else None
        if axes == 2:  # in memory channels come last: a third faster on a CPU; on one axis nothing is gained
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def stages(self) -> Iterator[nn.Module]:
        """All that it keeps activations in, but for the ends."""
        yield from (*self.input_blocks, self.middle_block, *self.output_blocks)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        embedding = self.time_embed(sinusoids(level, self.width).to(x.dtype))
        passed, noisy = [], x
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.input_blocks:
            x = stage(x, embedding)
            passed.append(x)
        x = self.middle_block(x, embedding)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, passed.pop()], dim=1), embedding)
        return self.out(x) if self.shortcut is None else self.out(x) + self.shortcut(noisy, embedding)


def sinusoids(level: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width), cosines before sines, of rates 1 down to 1 / PERIOD radians a unit."""
    half = width // 2
    rate = torch.exp(-math.log(PERIOD) * torch.arange(half, dtype=torch.float32, device=level.device) / half)
    angle = level.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
