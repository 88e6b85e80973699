"""Reverb and echoes as responses of busses.

The reverb is noise in twelve bands, each with a level and a decay of its own (Steinmetz, Ithapu and Calamia, WASPAA 2021). The noise is
drawn once for ever from a fixed seed: the same settings sound the same, in training and after it.

Shapes: R taps of the reverb, F frequencies; leading dimensions (...) are samples of a batch.
"""

from __future__ import annotations

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from models.blocks.console.layout import REVERB_BANDS
from models.blocks.precision import kept_for_all

SECONDS = 65536 / 44100  # that the reverb's noise lasts, at any sample rate
NOISE_SEED = 240708889
LOWEST, HIGHEST = 31.25, 18000.0  # Hz; the middles of the outermost bands
STRIDE = 256  # taps; about the root of how many there are, so that hardly any exponential is to be computed
ECHOES = 12  # at a feedback of 0.6 what is left out lies 49 dB below the first


def reverb_taps(sample_rate: int) -> int:
    return round(SECONDS * sample_rate)


@kept_for_all
def banded_noise(sample_rate: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, 12, R) left and right, independent; the bands add up to white noise of variance 1. Cosine slopes between them."""
    taps = reverb_taps(sample_rate)
    size = next_fast_len(2 * taps, real=True)
    white = torch.randn(2, size, generator=torch.Generator().manual_seed(NOISE_SEED), dtype=torch.float64)
    hertz = torch.fft.rfftfreq(size, 1 / sample_rate, dtype=torch.float64)
    place = (hertz / LOWEST).clamp(min=1e-9).log() / math.log(HIGHEST / LOWEST) * (REVERB_BANDS - 1)
    place = place.clamp(0, REVERB_BANDS - 1)
    distance = (place - torch.arange(REVERB_BANDS)[:, None]).abs().clamp(max=1)
    bands = torch.fft.rfft(white)[:, None] * (math.pi / 2 * distance).cos().square()
    return torch.fft.irfft(bands, size)[..., :taps].to(dtype).to(device)


def reverb_impulse(gains: Tensor, decays: Tensor, sample_rate: int) -> Tensor:
    """Gains in dB and seconds to -60 dB, (..., 12) each, or (..., 1) of all bands -> (..., 2, R), each channel of energy 1: how loud it is
    says the send."""
    noise = banded_noise(sample_rate, gains.dtype, gains.device)
    if gains.shape[-1] == 1:
        noise = noise.sum(1, keepdim=True)
    envelope = _envelopes(gains, decays, noise.shape[-1], sample_rate)
    # elementwise: as a product of matrices it is one of 2 x 12 numbers for every tap, and four times as slow
    impulse = torch.stack([(side * envelope).sum(-2) for side in noise], dim=-2)
    return impulse / impulse.square().sum(-1, keepdim=True).sqrt()


def _envelopes(gains: Tensor, decays: Tensor, taps: int, sample_rate: int) -> Tensor:
    """(..., bands, R): 10^(gain / 20) at first, 60 dB less after each decay; products of what it is every STRIDE taps and within."""
    rate = 3 * math.log(10) / sample_rate / decays[..., None]
    begins = STRIDE * torch.arange(-(-taps // STRIDE), device=gains.device).to(gains.dtype)
    within = torch.arange(STRIDE, device=gains.device).to(gains.dtype)
    coarse = torch.exp(gains[..., None] * (math.log(10) / 20) - rate * begins)
    return (coarse[..., None] * torch.exp(-rate * within)[..., None, :]).flatten(-2)[..., :taps]


def echo_response(time: Tensor, feedback: Tensor, damping: Tensor, size: int, room: int, sample_rate: int) -> Tensor:
    """Echoes after ``time`` (ms), each ``feedback`` times the one before, darker by a one-pole low-pass at ``damping`` (Hz); knobs (...).

    Complex (..., F), F = size // 2 + 1: a delay is a phase, so a time between two samples is one as well. Echoes that begin after
    ``room`` samples are left out, since on this grid they would come round to the beginning.
    """
    bins = torch.arange(size // 2 + 1, device=time.device)
    delay = time.detach()[..., None] * (sample_rate / 1000)
    heard = (torch.arange(1, ECHOES + 1, device=time.device) * delay < room).sum(-1, keepdim=True)
    pole = torch.exp(-2 * math.pi * damping[..., None] / sample_rate)
    turn = bins.to(time.dtype) * (2 * math.pi / size)
    darker = (1 - pole).log() - (1 + pole.square() - 2 * pole * turn.cos()).log() / 2  # each time, as a logarithm
    later = torch.atan2(pole * turn.sin(), 1 - pole * turn.cos())  # each time, in radians
    one = torch.ones_like(heard)
    step = torch.polar(darker.exp(), -later - _turned(time, one, bins, size, sample_rate))
    # all of the geometric series but its tail: what would come after those that are heard
    faint = (heard * (feedback[..., None].log() + darker)).exp()
    tail = torch.polar(faint, -heard * later - _turned(time, heard, bins, size, sample_rate))
    return step * (1 - tail) / (1 - feedback[..., None] * step)


def _turned(time: Tensor, times: Tensor, bins: Tensor, size: int, sample_rate: int) -> Tensor:
    """Radians (..., F) by which the ``bins`` (F,) are late after ``time`` (...) in ms, ``times`` (..., 1) over.

    A phase of thousands of turns has no digits left in single precision: whole samples turn by whole numbers, taken modulo a turn.
    """
    delay = time[..., None] * (sample_rate / 1000)
    whole = delay.detach().floor()
    turns = bins * (whole.long() * times) % size + bins * (times * (delay - whole))
    return turns * (2 * math.pi / size)
