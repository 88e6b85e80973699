"""Transforms of real signals whose gradients cost what they cost themselves.

The gradient of ``torch.fft.rfft`` is a complex transform of twice the numbers, and that of overlapping frames is added up one sample at a
time. Both are a transform back to real numbers and sums of whole hops. The values are torch's own.

Shapes: n samples, w samples of a window, L frames, F = size // 2 + 1 frequencies; leading dimensions (...) are free.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from models.blocks.precision import kept_for_all


def fast_size(samples: int) -> int:
    """The size to take for a transform of ``samples`` or more: factors 2, 3 and 5, most of them 2 (of 120,484 samples 122,880 and not
    121,500, which takes half as long again)."""
    step = 1 << max(0, samples.bit_length() - 8)
    return step * next_fast_len(-(-samples // step), real=True)


def rfft(wave: Tensor, size: int) -> Tensor:
    """(..., n) -> complex (..., F), cut or filled up with zeros to ``size`` samples."""
    found: Tensor = _Transform.apply(wave, size)
    return found


def powers(frames: Tensor) -> Tensor:
    """(..., w) -> (..., F): the squared magnitudes of their transforms."""
    found: Tensor = _Power.apply(frames)
    return found


def windowed(wave: Tensor, window: Tensor, hop: int) -> Tensor:
    """(..., n) and (w,) -> (..., L = 1 + (n - w) // hop, w): the frames that fit, each times the window."""
    found: Tensor = _Frames.apply(wave, window, hop)
    return found


def stft(wave: Tensor, window: Tensor, hop: int, mode: str = "reflect") -> Tensor:
    """(..., n) -> complex (..., L = 1 + n // hop, F); frame k is centred on sample k * hop, beyond the ends as ``mode`` says
    (``torch.nn.functional.pad``). As ``torch.stft``, but for the order of frames and frequencies."""
    return rfft(windowed(beyond(wave, len(window) // 2, mode), window, hop), len(window))


def beyond(wave: Tensor, samples: int, mode: str = "reflect") -> Tensor:
    """(..., n) -> (..., n + 2 samples). Raises RuntimeError where n is too short to be reflected."""
    if mode == "reflect" and 0 < samples < wave.shape[-1]:  # torch's own adds its gradient up in any order on a GPU
        before, after = wave[..., 1 : samples + 1].flip(-1), wave[..., -samples - 1 : -1].flip(-1)
        return torch.cat([before, wave, after], dim=-1)
    flat = torch.nn.functional.pad(wave.reshape(-1, wave.shape[-1]), (samples, samples), mode=mode)
    return flat.reshape(*wave.shape[:-1], -1)


def overlapped(frames: Tensor, hop: int) -> Tensor:
    """(b, L, w) at ``hop`` -> (b, n), filled up to whole hops. Hop by hop, so that what is written lies together."""
    pieces = -(-frames.shape[-1] // hop)
    parts = torch.nn.functional.pad(frames, (0, pieces * hop - frames.shape[-1])).unflatten(-1, (pieces, hop))
    total = frames.new_zeros(len(frames), frames.shape[1] + pieces - 1, hop)
    for i in range(pieces):
        total[:, i : i + frames.shape[1]] += parts[:, :, i]
    return total.flatten(1)


def _fitted(wave: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(wave, (0, length - wave.shape[-1]))  # a negative number cuts


@kept_for_all
def _halves(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F,): a frequency that ``irfft`` takes for itself and for its mirror image counts half."""
    shares = torch.full((size // 2 + 1,), 0.5, dtype=dtype, device=device)
    shares[0] = 1
    if size % 2 == 0:
        shares[-1] = 1
    return shares


class _Transform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wave: Tensor, size: int) -> Tensor:
        ctx.length, ctx.size = wave.shape[-1], size
        return torch.fft.rfft(wave, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        halved = gradient * _halves(ctx.size, gradient.real.dtype, gradient.device)
        return _fitted(torch.fft.irfft(halved, ctx.size, norm="forward"), ctx.length), None


class _Power(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames)
        ctx.save_for_backward(spectrum)
        ctx.size = frames.shape[-1]
        return spectrum.real.square() + spectrum.imag.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (spectrum,), (gradient,) = ctx.saved_tensors, gradients
        share = gradient * (2 * _halves(ctx.size, gradient.dtype, gradient.device))
        return torch.fft.irfft(spectrum * share, ctx.size, norm="forward")


class _Frames(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wave: Tensor, window: Tensor, hop: int) -> Tensor:
        ctx.save_for_backward(window)
        ctx.shape, ctx.hop = wave.shape, hop
        return wave.unfold(-1, len(window), hop) * window

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (window,), (gradient,) = ctx.saved_tensors, gradients
        sums = overlapped((gradient * window).reshape(-1, *gradient.shape[-2:]), ctx.hop)
        return _fitted(sums, ctx.shape[-1]).reshape(ctx.shape), None, None
