"""From latents to what the U-Net sees and back: the layout of time, and the preconditioning that all objectives share.

With tan(t) = sigma / sigma_data, EDM's preconditioning (Karras et al. 2206.00364, Eq. (7) and Table 1) and TrigFlow's (Lu and Song
2410.11081, Section 3) are one function of one network, but for the sign of its output: c_in x = x_t / sigma_data, c_skip x = cos(t) x_t and
c_out = sigma_data sin(t), where x_t = cos(t) x. So every objective trains the same weights.

Shapes: B samples, S stems, C latent channels, L frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cd4mt.config import ModelConfig
from models.cd4mt.unet import UNet


def rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1): one number a sample, to be multiplied with (B, S, C, L)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


class Layout:
    """How (B, S, C, L) becomes (B, S C, ...) with axes that the U-Net can halve; cells that hold no frame are 0 and are dropped again."""

    def __init__(self, kind: str, shrink: int) -> None:
        self.axes, self.shrink = (1 if kind == "time" else 2), shrink

    def shape(self, frames: int) -> tuple[int, ...]:
        """Cells along each axis."""
        side = frames if self.axes == 1 else math.isqrt(frames - 1) + 1  # ceil of the root
        return (-(-side // self.shrink) * self.shrink,) * self.axes

    def fold(self, latents: Tensor) -> Tensor:
        shape = self.shape(latents.shape[-1])
        padded = F.pad(latents.flatten(1, 2), (0, math.prod(shape) - latents.shape[-1]))
        return padded.unflatten(-1, shape)

    def unfold(self, cells: Tensor, stems: int, frames: int) -> Tensor:
        return cells.flatten(2)[..., :frames].unflatten(1, (stems, -1))


class Denoiser(nn.Module):
    """D(x, sigma): latents of deviation sigma_data with noise of deviation sigma -> an estimate without it.

    Args:
        stems, channels: S and C of the latents.
    """

    def __init__(self, config: ModelConfig, stems: int, channels: int) -> None:
        super().__init__()
        self.sigma_data, self.level = config.sigma_data, config.noise_level
        # CM and iCT keep x unchanged at sigma_min (2303.01469, Appendix C), EDM's form at 0
        self.boundary = config.sigma_min if config.objective in ("cm", "ict") else 0.0
        self.layout = Layout(config.layout, 2 ** (len(config.unet.multipliers) - 1))
        self.network = UNet(self.layout.axes, stems * channels, config.unet)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """(B, S, C, L) and (B,) -> (B, S, C, L) float32."""
        data, level = self.sigma_data, rows(sigma, noisy)
        above = level - self.boundary
        skip = data**2 / (above**2 + data**2)
        out = above * data / (level**2 + data**2).sqrt()
        angle = torch.atan(sigma / data)
        return skip * noisy + out * self.raw(noisy / (level**2 + data**2).sqrt(), angle)

    def raw(self, scaled: Tensor, angle: Tensor) -> Tensor:
        """F: latents with noise of deviation 1 in all, and the angle t in (0, pi/2) -> (B, S, C, L) float32."""
        # c_noise: t (2410.11081, Section 4), or ln(sigma) / 4 (2206.00364, Table 1) in thousandths
        told = angle if self.level == "angle" else 250 * (self.sigma_data * angle.tan()).log()
        cells = self.network(self.layout.fold(scaled), told)
        return self.layout.unfold(cells, scaled.shape[1], scaled.shape[-1]).float()
