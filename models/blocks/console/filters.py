"""Second-order filters as responses at the frequencies of an FFT.

Filters: R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients". Sampling their response on a grid that is
longer than signal and ringing together makes them differentiable without a recursion (Nercessian, DAFx 2020). The response is computed
where it can bend, and interpolated between: a filter's width grows with its distance from 0 Hz and from half the sample rate.

Shapes: F frequencies of an FFT, G knots among them; leading dimensions (...) are tracks and samples of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.blocks.precision import kept_for_all

FINE = 1024  # steps from an end of the spectrum to where the grid's step doubles; twice as many next to the ends
Kind = Literal["high_pass", "low_shelf", "peak", "high_shelf"]


def coefficients(kind: Kind, hertz: Tensor, decibels: Tensor, q: Tensor, sample_rate: int) -> Tensor:
    """Second-order sections (..., 6): b0 + b1 + b2, b0 - b1 + b2, b0 - b2 of the numerator, and of the denominator; not normalised.

    The first is tiny at low frequencies, the second at high ones. Written as squares of sine and cosine of half the angle they are right
    in single precision, where sums of the cookbook's coefficients would leave nothing of them.
    """
    half = math.pi * hertz / sample_rate
    low, high = 4 * half.sin().square(), 4 * half.cos().square()  # 2 - 2 cos w, 2 + 2 cos w
    alpha, a = half.sin() * half.cos() / q, 10 ** (decibels / 40)
    none, root = torch.zeros_like(low), 4 * a.sqrt() * alpha
    match kind:
        case "high_pass":
            found = [none, high, none, low, high, 2 * alpha]
        case "peak":
            found = [low, high, 2 * alpha * a, low, high, 2 * alpha / a]
        case "high_shelf":
            found = [2 * a * low, 2 * a * a * high, a * root, 2 * a * low, 2 * high, root]
        case "low_shelf":
            found = [2 * a * a * low, 2 * a * high, a * root, 2 * low, 2 * a * high, root]
    return torch.stack(found, dim=-1)


def cascade(sections: Tensor, omega: Tensor) -> Tensor:
    """Sections (..., S, 6) in a row -> their response at the angles ``omega`` (F,) in radians a sample, complex (..., F)."""
    return _cascade(sections, _angles(omega.double()).to(sections))


def sampled(sections: Tensor, size: int) -> Tensor:
    """The same at the F = size // 2 + 1 frequencies of an FFT, by cubic interpolation; at worst -120 dB from the response itself."""
    grid = _grid(size, sections.dtype, sections.device)
    values, found, begin = _cascade(sections, grid.angles), [], 0
    for stretch, matrix in zip(grid.stretches, grid.matrices, strict=True):
        knots = values[..., begin : begin + stretch.knots]
        begin += stretch.knots
        if matrix is not None:
            knots = (knots.unfold(-1, 4, 1) @ matrix).flatten(-2)
        found.append(knots[..., : stretch.length])
    return torch.cat(found, dim=-1)


def _angles(omega: Tensor) -> Tensor:
    """cos^2 (w / 2), sin^2 (w / 2) and sin w, (3, F)."""
    return torch.stack([(omega / 2).cos().square(), (omega / 2).sin().square(), omega.sin()])


def _cascade(sections: Tensor, angles: Tensor) -> Tensor:
    """e^{jw} (b0 + b1 e^{-jw} + b2 e^{-2jw}) = (b0 + b1 + b2) cos^2 (w / 2) - (b0 - b1 + b2) sin^2 (w / 2) + j (b0 - b2) sin w."""
    low, high, apart = (x[..., None] for x in sections.unflatten(-1, (2, 3)).unbind(-1))
    above, below = torch.complex(low * angles[0] - high * angles[1], apart * angles[2]).unbind(-2)  # (..., S, F) each
    return _product(above) / _product(below)


def _product(factors: Tensor) -> Tensor:
    """(..., S, F) -> (..., F); one after the other, since ``prod`` passes no cheap gradient."""
    total, *others = factors.unbind(-2)
    for factor in others:
        total = total * factor
    return total


@dataclass(frozen=True)
class Stretch:
    """Frequencies from number ``first`` on, ``length`` of them, known at every ``step``-th."""

    first: int
    step: int
    length: int

    @property
    def intervals(self) -> int:
        return -(-self.length // self.step)

    @property
    def knots(self) -> int:
        """One before and two after the intervals' beginnings, where there is something between."""
        return self.intervals + (3 if self.step > 1 else 0)


@dataclass(frozen=True)
class Grid:
    """``angles`` (3, G) of the knots of all stretches (see ``_angles``); for each stretch the matrix (4, step) that fills it, None where
    nothing is to be filled."""

    stretches: tuple[Stretch, ...]
    angles: Tensor
    matrices: tuple[Tensor | None, ...]


def stretches(frequencies: int) -> tuple[Stretch, ...]:
    """Of numbers 0 to ``frequencies`` - 1: single steps at both ends, steps that double towards the middle."""
    if frequencies < 8 * FINE:
        return (Stretch(0, 1, frequencies),)
    upper, end = [Stretch(frequencies - 2 * FINE, 1, 2 * FINE)], frequencies - 2 * FINE
    lower, begin, step = [Stretch(0, 1, 2 * FINE)], 2 * FINE, 2
    while begin < end:
        length = min(FINE * step, end - begin)
        lower.append(Stretch(begin, step, length))
        begin += length
        whole = FINE * step if begin + FINE * step <= end else (end - begin) // step * step
        if whole:
            upper.append(Stretch(end - whole, step, whole))
            end -= whole
        step *= 2
    return (*lower, *reversed(upper))


@kept_for_all
def _grid(size: int, dtype: torch.dtype, device: torch.device) -> Grid:
    found = stretches(size // 2 + 1)
    numbers = [s.first + s.step * (torch.arange(s.knots) - (1 if s.step > 1 else 0)) for s in found]
    angles = _angles(torch.cat(numbers).double() * (2 * math.pi / size))
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    matrices = tuple(_cubic(s.step).to(complex_dtype).to(device) if s.step > 1 else None for s in found)
    return Grid(found, angles.to(dtype).to(device), matrices)


def _cubic(step: int) -> Tensor:
    """(4, step): Lagrange's polynomial through the knots at -1, 0, 1 and 2, at 0, 1 / step, ..."""
    t = torch.arange(step, dtype=torch.float64) / step
    return torch.stack([
        -t * (t - 1) * (t - 2) / 6, (t + 1) * (t - 1) * (t - 2) / 2, -(t + 1) * t * (t - 2) / 2, (t + 1) * t * (t - 1) / 6,
    ])  # fmt: skip
