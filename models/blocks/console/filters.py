"""Linear parts: second-order filters by frequency sampling, and convolution whose filter may change along the sound.

Filters: R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients". Sampling their response on a grid that is
longer than signal and ringing together makes them differentiable without a recursion (Nercessian, DAFx 2020).

Shapes: n samples, K settings along time, F frequencies; leading dimensions (...) are tracks and samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from scipy.fft import next_fast_len
from torch import Tensor

BLOCK = 1 << 19  # samples of a long signal that are filtered at a time
Kind = Literal["high_pass", "low_shelf", "peak", "high_shelf"]
Response = Callable[[int, int], Tensor]  # (number of the setting, size of the FFT) -> complex (..., F)


def coefficients(kind: Kind, hertz: Tensor, decibels: Tensor, q: Tensor, sample_rate: int) -> Tensor:
    """Second-order sections (..., 6): b0 b1 b2 a0 a1 a2, not normalised."""
    omega = 2 * math.pi * hertz / sample_rate
    cosine, alpha, a = omega.cos(), omega.sin() / (2 * q), 10 ** (decibels / 40)
    match kind:
        case "high_pass":
            edge = (1 + cosine) / 2
            b = [edge, -2 * edge, edge]
            d = [1 + alpha, -2 * cosine, 1 - alpha]
        case "peak":
            b = [1 + alpha * a, -2 * cosine, 1 - alpha * a]
            d = [1 + alpha / a, -2 * cosine, 1 - alpha / a]
        case _:  # a low shelf is a high shelf with the cosine's sign turned, and its odd coefficients'
            turn = 1 if kind == "high_shelf" else -1
            root, tilt = 2 * a.sqrt() * alpha, turn * (a - 1) * cosine
            b = [
                a * (a + 1 + tilt + root),
                -2 * turn * a * (a - 1 + turn * (a + 1) * cosine),
                a * (a + 1 + tilt - root),
            ]
            d = [a + 1 - tilt + root, 2 * turn * (a - 1 - turn * (a + 1) * cosine), a + 1 - tilt - root]
    return torch.stack([*b, *d], dim=-1)


def cascade(sections: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Sections (..., S, 6) in a row -> their response at the F = size // 2 + 1 frequencies of an FFT, complex (..., F) of real ``dtype``.

    e^{jw} (b0 + b1 e^{-jw} + b2 e^{-2jw}) = (b0 + b1 + b2) - 2 (b0 + b2) sin^2(w / 2) + j (b0 - b2) sin w: the sum, small at low
    frequencies, is taken in double precision, and the rest of it may be single.
    """
    b0, b1, b2 = sections.double().unflatten(-1, (2, 3)).unbind(-1)
    omega = torch.arange(size // 2 + 1, dtype=torch.float64, device=sections.device) * (2 * math.pi / size)
    even, odd = (-2 * (omega / 2).sin().square()).to(dtype), omega.sin().to(dtype)
    whole, pair, apart = ((x[..., None]).to(dtype) for x in (b0 + b1 + b2, b0 + b2, b0 - b2))
    above, below = torch.complex(whole + pair * even, apart * odd).unbind(-2)  # (..., S, F) each
    return _product(above) / _product(below)


def _product(factors: Tensor) -> Tensor:
    """(..., S, F) -> (..., F); pairwise, since ``prod`` passes no cheap gradient."""
    total, *others = factors.unbind(-2)
    for factor in others:
        total = total * factor
    return total


def pieces(length: int, settings: int, spacing: int | None) -> Iterator[tuple[int, int, int]]:
    """Setting k rules the samples from start to end: yields (k, start, end), at most two at a place."""
    if settings == 1 or spacing is None:
        yield from ((0, start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))
        return
    for k in range(settings):
        start, end = max(0, (k - 1) * spacing), length if k == settings - 1 else min((k + 1) * spacing, length)
        if end > start:
            yield k, start, end


def weights(k: int, start: int, end: int, settings: int, spacing: int | None, like: Tensor) -> Tensor | None:
    """How much of each sample belongs to setting k: triangles whose sum is one everywhere; None where it is all."""
    if settings == 1 or spacing is None:
        return None
    at = torch.arange(start, end, device=like.device, dtype=torch.float64) / spacing
    shape = 1 - (at - k).abs()
    if k == settings - 1:
        shape = torch.where(at > k, torch.ones_like(shape), shape)  # the last setting holds to the end
    return shape.clamp(min=0).to(like.dtype)


def convolve(wave: Tensor, response: Response, tail: int, settings: int = 1, spacing: int | None = None) -> Tensor:
    """(..., n) -> (..., n), each stretch filtered as its setting says and rung out to the end, ``tail`` samples at most.

    Every setting filters its own share of the signal (``weights``), so a change of settings is a crossfade of what goes in: no click,
    and with equal settings exactly the filter that does not change.
    """
    length = wave.shape[-1]
    if length <= BLOCK and (settings == 1 or spacing is None):
        return _filtered(wave, response, 0, tail)[..., :length]
    total: Tensor | None = None
    for k, start, end in pieces(length, settings, spacing):
        share = weights(k, start, end, settings, spacing, wave)
        piece = wave[..., start:end] if share is None else wave[..., start:end] * share
        rung = _filtered(piece, response, k, tail)[..., : length - start]
        if total is None:
            total = rung.new_zeros(*rung.shape[:-1], length)
        total[..., start : start + rung.shape[-1]] += rung
    assert total is not None
    return total


def _filtered(piece: Tensor, response: Response, k: int, tail: int) -> Tensor:
    """(..., m) -> (..., m + tail)."""
    full = piece.shape[-1] + tail
    size = next_fast_len(full, real=True)
    return torch.fft.irfft(torch.fft.rfft(piece, size) * response(k, size), size)[..., :full]
