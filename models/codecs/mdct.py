"""``mdct``: an analytic codec for waveforms, so that latent-space systems run, train and sound where no weights are at hand.

The modified discrete cosine transform (Princen and Bradley 1986; the lapped transform of Malvar 1990) as a rotation of what
overlaps and an orthonormal DCT-IV of each block. At the two ends nothing overlaps, so n = L * hop samples give exactly L frames of
``hop`` coefficients, and the transform is an orthonormal square matrix: with all bands kept, decoding is exact and energy is the
same on both sides. Of ``hop`` bands the lowest ``channels`` are kept; the rest of the spectrum is lost, and nothing else is:

    sample rate   hop   channels   kept              frames a second   latent of the full-size segment
    44,100 Hz     512         64   0 .. 2,756 Hz     86.1              524,288 samples -> (64, 1024)
    24,000 Hz     320        128   0 .. 4,800 Hz     75                384,000 samples -> (128, 1200)

The second has the shape of EnCodec's latents. The first keeps music2latent's 64 channels and has 8 times its frames: a frame of
music2latent spans 4096 samples, and 64 coefficients of such a block would end at 345 Hz. The lost treble costs little where notes are
low and much where noise is: on the demo corpora (``benchmarks/codecs.py``, validation, median) the round trip has a signal-to-noise ratio
of 42 dB for bass, 12 for drums, 16 for guitar, 34 for piano; at 24 kHz 18 for the rhythm side of the pairs, 30 for the other. Nothing is
learnt: this is a stand-in with known properties.

Shape legend: n samples, C channels, L frames; leading dimensions are free.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.blocks.precision import full_precision
from models.codecs.base import Codec


@dataclass(frozen=True)
class MdctShape:
    """``hop`` samples a block (even), of whose ``hop`` coefficients the lowest ``channels`` are kept."""

    hop: int
    channels: int


VARIANTS = {44100: MdctShape(hop=512, channels=64), 24000: MdctShape(hop=320, channels=128)}  # by sample rate


class Mdct(Codec):
    """(..., n) <-> (..., C, L), L = ceil(n / hop): the last block is filled with zeros. Differentiable both ways."""

    name = "mdct"
    licence = "mdct: a formula, no weights, no licence."
    differentiable = True

    def __init__(self, sample_rate: int, device: str = "cpu", shape: MdctShape | None = None) -> None:
        shape = shape or VARIANTS[sample_rate]
        if shape.hop % 2 or not 0 < shape.channels <= shape.hop:
            raise ValueError(f"{shape}: the hop must be even, and 1 to hop channels can be kept")
        super().__init__(sample_rate, shape.hop, shape.channels, device)

    @full_precision
    def encode(self, wave: Tensor) -> Tensor:
        wave = self._taken(wave)
        wave = torch.nn.functional.pad(wave, (0, -wave.shape[-1] % self.hop))
        blocks = _rotate(wave.unflatten(-1, (-1, self.hop)), 1.0)
        return (blocks @ self._basis(wave.dtype)).transpose(-1, -2)

    @full_precision
    def decode(self, latent: Tensor) -> Tensor:
        latent = self._taken(latent)
        blocks = latent.transpose(-1, -2) @ self._basis(latent.dtype).T
        return _rotate(blocks, -1.0).flatten(-2)

    def latent_shape(self, samples: int) -> tuple[int, ...]:
        return self.channels, -(-samples // self.hop)

    def _basis(self, dtype: torch.dtype) -> Tensor:
        return _dct_iv(self.hop, self.channels, dtype, self.device)


def load(weights_folder: Path | None, device: str, sample_rate: int) -> Mdct:
    return Mdct(sample_rate, device)


def _rotate(blocks: Tensor, sense: float) -> Tensor:
    """Rotate every pair of samples that mirror each other at a border of two blocks, by the angle of the sine window.

    (..., L, hop) -> the same shape. The window reaches half a block over each border: what is even there goes to the block on the
    right, what is odd to the one on the left (time-domain alias cancellation). ``sense`` -1 undoes it.
    """
    half = blocks.shape[-1] // 2
    angle = (torch.arange(half, dtype=blocks.dtype, device=blocks.device) + half + 0.5) * (math.pi / (4 * half))
    cosine, sine = angle.sin(), sense * angle.cos()  # the window at k samples after the border, and k before it
    right = blocks[..., 1:, :half]
    left = blocks[..., :-1, half:].flip(-1)
    heads = torch.cat([blocks[..., :1, :half], cosine * right + sine * left], dim=-2)
    tails = torch.cat([(cosine * left - sine * right).flip(-1), blocks[..., -1:, half:]], dim=-2)
    return torch.cat([heads, tails], dim=-1)


@functools.cache
@torch.inference_mode(False)  # what is kept here must serve training too, whoever asked first
def _dct_iv(size: int, kept: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The first ``kept`` columns of the orthonormal DCT-IV of ``size`` points: (size, kept)."""
    place = torch.arange(size, dtype=torch.float64) + 0.5
    basis = math.sqrt(2 / size) * torch.cos(math.pi / size * place[:, None] * place[None, :kept])
    return basis.to(dtype=dtype, device=device)
