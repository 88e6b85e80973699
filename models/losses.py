"""Distances of waveforms that several systems minimise or report.

Shapes: B samples, C channels, n samples of a waveform; windows of an STFT in samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.blocks import fourier
from models.blocks.precision import full_precision, kept_for_all
from models.features import octave_bands

RESOLUTIONS = (512, 2048, 8192)  # hops are half of them
OCTAVES = ((1024, 24), (4096, 48), (16384, 48))  # windows, and the bands that each is seen in
FAINT = 1e-7  # mean power of a band's bins, some -95 dB of full scale: what lies below is not told apart
POWER_FLOOR = 1e-8  # of an STFT with a Hann window of unit peak


@full_precision
def multi_resolution_stft(one: Tensor, target: Tensor, windows: tuple[int, ...] = RESOLUTIONS) -> Tensor:
    """(B, C, n) each -> (B,): spectral convergence plus the mean difference of log magnitudes, averaged over channels and resolutions.

    Yamamoto, Song and Kim, "Parallel WaveGAN" (ICASSP 2020), Eqs. (4) to (6). Raises ValueError for a signal shorter than half a window.
    """
    if one.shape[-1] <= max(windows) // 2:
        raise ValueError(f"{one.shape[-1]} samples are too short for an STFT of {max(windows)}")
    found = []
    for window in windows:
        ours, theirs = (magnitudes(wave, window, window // 2) for wave in (one, target))
        apart = (ours - theirs).square().sum((-1, -2)).clamp(min=POWER_FLOOR).sqrt()
        convergence = apart / theirs.square().sum((-1, -2)).clamp(min=POWER_FLOOR).sqrt()
        logarithmic = (ours.log() - theirs.log()).abs().mean((-1, -2))
        found.append((convergence + logarithmic).mean(1))
    return torch.stack(found).mean(0)


@full_precision
def multi_resolution_octaves(
    one: Tensor, target: Tensor, sample_rate: int, resolutions: tuple[tuple[int, int], ...] = OCTAVES
) -> Tensor:
    """(B, C, n) each -> (B,): mean absolute difference of the natural logarithms of amplitude in bands of equal width in octaves, averaged
    over channels, frames, bands and resolutions.

    What ``multi_resolution_stft`` says of single bins, of which two thirds lie in the highest octave and a half, and all are as random as
    the noise of a reverb, this says of bands, as an equaliser is set; its minimum is not moved by that noise. Raises ValueError for a
    signal shorter than half a window.
    """
    longest = max(window for window, _ in resolutions)
    if one.shape[-1] <= longest // 2:
        raise ValueError(f"{one.shape[-1]} samples are too short for an STFT of {longest}")
    found = []
    for window, count in resolutions:
        bank = _octaves(count, window, sample_rate, one.dtype, one.device)
        ours, theirs = ((powers(wave, window, window // 4) @ bank).clamp(min=FAINT).log() / 2 for wave in (one, target))
        found.append((ours - theirs).abs().mean((1, 2, 3)))
    return torch.stack(found).mean(0)


def magnitudes(wave: Tensor, window: int, hop: int) -> Tensor:
    """(..., n) -> (..., L, F) magnitudes of a centred Hann STFT, none below the root of POWER_FLOOR."""
    return powers(wave, window, hop).sqrt()


def powers(wave: Tensor, window: int, hop: int) -> Tensor:
    """(..., n) -> (..., L, F) their squares."""
    frames = fourier.windowed(fourier.beyond(wave, window // 2), _hann(window, wave.dtype, wave.device), hop)
    return fourier.powers(frames).clamp(min=POWER_FLOOR)


@kept_for_all
def _hann(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.hann_window(window, dtype=dtype, device=device)


@kept_for_all
def _octaves(count: int, window: int, sample_rate: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return octave_bands(count, window, sample_rate).to(dtype).to(device)
