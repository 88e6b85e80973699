"""Convolution whose filter may change along the sound, block by block by FFT.

Shapes: n samples, K settings along time, F frequencies; leading dimensions (...) are tracks and samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from models.blocks.fourier import fast_size, rfft

BLOCK = (
    1 << 17
)  # samples that are filtered at a time: short enough for a response to cost little, long against what rings
Response = Callable[[int, int], Tensor]  # (number of the setting, size of the FFT) -> complex (..., F)


def pieces(length: int, settings: int, spacing: int | None, block: int) -> Iterator[tuple[int, int, int]]:
    """Setting k rules the samples from start to end: yields (k, start, end), at most two at a place, none longer than ``block``."""
    if settings == 1 or spacing is None:
        yield from ((0, start, min(start + block, length)) for start in range(0, length, block))
        return
    for k in range(settings):
        first, last = max(0, (k - 1) * spacing), length if k == settings - 1 else min((k + 1) * spacing, length)
        yield from ((k, start, min(start + block, last)) for start in range(first, last, block))


def weights(k: int, start: int, end: int, settings: int, spacing: int | None, like: Tensor) -> Tensor | None:
    """How much of each sample belongs to setting k: triangles whose sum is one everywhere; None where it is all."""
    if settings == 1 or spacing is None:
        return None
    at = torch.arange(start - k * spacing, end - k * spacing, device=like.device).to(like.dtype) / spacing
    shape = 1 - at.abs()
    if k == settings - 1:
        shape = torch.where(at > 0, torch.ones_like(shape), shape)  # the last setting holds to the end
    return shape.clamp(min=0)


def convolve(wave: Tensor, response: Response, tail: int, settings: int = 1, spacing: int | None = None) -> Tensor:
    """(..., n) -> (..., n), each stretch filtered as its setting says and rung out to the end, ``tail`` samples at most.

    Every setting filters its own share of the signal (``weights``), so a change of settings is a crossfade of what goes in: no click,
    and with equal settings exactly the filter that does not change.
    """
    length, block = wave.shape[-1], max(BLOCK, tail)  # what rings for longer is not to be most of the work
    kept = _kept(response)
    if length <= block and (settings == 1 or spacing is None):
        return _filtered(wave, kept, 0, tail)[..., :length]
    total: Tensor | None = None
    for k, start, end in pieces(length, settings, spacing, block):
        share = weights(k, start, end, settings, spacing, wave)
        piece = wave[..., start:end] if share is None else wave[..., start:end] * share
        rung = _filtered(piece, kept, k, tail)[..., : length - start]
        if total is None:
            total = rung.new_zeros(*rung.shape[:-1], length)
        total[..., start : start + rung.shape[-1]] += rung
    assert total is not None
    return total


def _kept(response: Response) -> Response:
    """The last answer is remembered: a long signal goes through one filter block by block."""
    last: dict[tuple[int, int], Tensor] = {}

    def answer(k: int, size: int) -> Tensor:
        if (k, size) not in last:
            last.clear()
            last[k, size] = response(k, size)
        return last[k, size]

    return answer


def _filtered(piece: Tensor, response: Response, k: int, tail: int) -> Tensor:
    """(..., m) -> (..., m + tail)."""
    full = piece.shape[-1] + tail
    size = fast_size(full)
    return torch.fft.irfft(rfft(piece, size) * response(k, size), size)[..., :full]
