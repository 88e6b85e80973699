"""What music offers a light: onsets of three bands, and the beat. Teaches the generator, and is what the scripted judge goes by.

Onset strength is spectral flux, the rise of the compressed magnitude (Dixon, "Onset detection revisited", DAFx 2006, Section 2.1). The
beat is the predominant local pulse of those onsets (Grosche and Mueller, IEEE TASLP 19, 2011, Section III): in every window of two seconds
the sinusoid that fits best, overlapped and added. Nothing is divided by the loudest point of a piece, so all of it is local.

Shapes: B inputs, T frames, C columns; frame rate as ``config.FRAME_RATE``; strengths are in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.precision import full_precision, kept_for_all
from models.cqtml.config import BINS, FRAME_RATE
from models.features import CQT, MelSpec, mel

BANDS = ((0, 28), (28, 56), (56, 84))  # bins: 33 to 156 Hz, to 784 Hz, to 3951 Hz
COMPRESSION = 30.0  # gamma of log(1 + gamma |X|)
SMOOTHED = 17  # frames that loudness is averaged over, 49 ms: partials beat against each other faster than that
LAG = 12  # frames over which a rise is measured, 35 ms
THRESHOLD = 0.06  # a smaller mean rise is none
SATURATION = 0.2  # a rise of so much more is strength 1 - 1/e
PULSE_WINDOW = 2.0  # seconds
PULSE_RATE = FRAME_RATE / 8  # of the onsets that the beat is found in, in hertz
TEMPI = torch.linspace(1.0, 3.2, 67)  # beats a second: 60 to 192 a minute
PULSE_LEVEL = 0.1  # mean onset strength along a pulse that makes the beat sure
EAR = MelSpec(sample_rate=22050, bands=40, window=1024, hop=512, f_max=11025.0)  # the second judge's
EAR_SATURATION = 0.35


@full_precision
def band_onsets(log_magnitude: Tensor) -> Tensor:
    """(B, 84, T) natural logarithm of the CQT's magnitude -> (B, 3, T)."""
    loudness = (COMPRESSION * log_magnitude.float().exp()).log1p()
    loudness = F.avg_pool1d(loudness, SMOOTHED, 1, SMOOTHED // 2, count_include_pad=False)
    return _saturated(torch.stack([_flux(loudness[:, low:high], LAG) for low, high in BANDS], 1), SATURATION)


@full_precision
def ear_onsets(audio: Tensor, frames: int) -> Tensor:
    """(B, n) at 22,050 Hz, full scale 1 -> (B, T): the flux of mel bands, a second opinion on where onsets are."""
    loudness = (COMPRESSION * mel(audio.float(), EAR)).log1p()
    return F.interpolate(_saturated(_flux(loudness, 1), EAR_SATURATION)[:, None], frames, mode="linear")[:, 0]


@full_precision
def note_onsets(notes: Tensor, count: Tensor, frames: int) -> Tensor:
    """MusicNet's labels (B, 512, 4), of which ``count`` (B,) are notes -> (B, 3, T): 1 where a note of the band begins."""
    start, pitch = notes[..., 0], notes[..., 2]
    frame = torch.div(start, CQT.hop, rounding_mode="floor").long()
    bins = (pitch - 24).clamp(0, BINS - 1)  # bin 0 is C1, MIDI 24
    real = (torch.arange(notes.shape[1], device=notes.device) < count[:, None]) & (start >= 0) & (frame < frames)
    silent = torch.zeros(len(notes), frames, device=notes.device)
    begin = [(real & (bins >= low) & (bins < high)).float() for low, high in BANDS]
    return torch.stack([silent.scatter_reduce(1, frame.clamp(0, frames - 1), here, "amax") for here in begin], 1)


@full_precision
def pulse(onsets: Tensor) -> Tensor:
    """(B, T) onset strength -> (B, T): high on beats, 0 between them, and low where there is no beat to be found."""
    slow = F.interpolate(onsets[:, None], scale_factor=PULSE_RATE / FRAME_RATE, mode="area")[:, 0]
    size = min(round(PULSE_WINDOW * PULSE_RATE), slow.shape[-1])
    hop = max(1, size // 8)
    padded = F.pad(slow, (size // 2, size // 2 + hop))
    windows = padded.unfold(-1, size, hop)  # (B, W, size)
    window, waves = _pulse_waves(size, windows.device)
    found = torch.complex(windows @ waves.real, -(windows @ waves.imag))  # (B, W, tempi)
    strongest = found.abs().argmax(-1, keepdim=True)
    chosen = found.gather(-1, strongest)
    waved = (chosen / chosen.abs().clamp_min(1e-6) * waves.T[strongest[..., 0]]).real  # (B, W, size)
    sure = (chosen.abs() / window.sum() / PULSE_LEVEL).clamp_max(1.0)
    whole = _overlap_add(waved * sure, hop, padded.shape[-1]) / _overlap_add(
        window.expand_as(waved[:1]), hop, padded.shape[-1]
    )
    beats = whole[:, size // 2 : size // 2 + slow.shape[-1]].clamp_min(0)
    return F.interpolate(beats[:, None], onsets.shape[-1], mode="linear")[:, 0]


@full_precision
def falling(strength: Tensor, release: float) -> Tensor:
    """(..., T) -> (..., T): up at once, down to 1/e in ``release`` seconds: max over s <= t of x_s exp(-(t - s) / release)."""
    time = torch.arange(strength.shape[-1], device=strength.device) / FRAME_RATE / release
    return ((strength.clamp_min(1e-6).log() + time).cummax(-1).values - time).exp()


def taught(cqt: Tensor, release: float, notes: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """What each light is first taught, (B, 2, 84, T) as prepared -> brightness (B, 4, T). Labelled notes replace what is heard."""
    onsets = band_onsets(cqt[:, 0])
    heard = note_onsets(*notes, onsets.shape[-1]) if notes else onsets
    return torch.cat([falling(heard, release), pulse(onsets.mean(1))[:, None]], 1)


def _flux(loudness: Tensor, lag: int) -> Tensor:
    """(B, bins, T) -> (B, T): mean rise over ``lag`` frames, placed in their middle."""
    padded = F.pad(loudness, (lag - lag // 2, lag // 2), mode="replicate")
    return (padded[..., lag:] - padded[..., :-lag]).clamp_min(0).mean(1)


def _saturated(rise: Tensor, scale: float) -> Tensor:
    return 1 - (-(rise - THRESHOLD).clamp_min(0) / scale).exp()


def _overlap_add(windows: Tensor, hop: int, length: int) -> Tensor:
    """(B, W, size) at multiples of ``hop`` -> (B, length)."""
    size = windows.shape[-1]
    covered = (windows.shape[1] - 1) * hop + size
    total = F.fold(windows.mT, (1, covered), (1, size), stride=(1, hop))[:, 0, 0]
    return F.pad(total, (0, length - covered), value=1e-6)


@kept_for_all
def _pulse_waves(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window (size,) and windowed oscillations (size, tempi) of every tempo."""
    window = torch.hann_window(size, periodic=False).clamp_min(1e-3)
    angle = 2 * math.pi * torch.arange(size)[:, None] / PULSE_RATE * TEMPI
    return window.to(device), torch.polar(window[:, None].expand_as(angle).contiguous(), angle).to(device)
