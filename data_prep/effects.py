"""A mixing engineer's chain with known settings: filters, compressor, reverb, pan, and the latency of it all.

It makes the demo's mixed vocals, so that what a model finds can be held against what was done. Filters: R. Bristow-Johnson, "Cookbook
formulae for audio EQ biquad filter coefficients".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONTROL = 48  # samples between two values of the compressor's gain


@dataclass(frozen=True)
class Band:
    """``kind``: high_pass, peak or high_shelf; ``hertz`` of corner or centre; ``decibels`` is nothing to a high-pass."""

    kind: str
    hertz: float
    decibels: float
    q: float


@dataclass(frozen=True)
class Settings:
    """Levels in dB, times in ms but for the reverb's seconds to -60 dB; ``pan`` -1 (left) to 1; ``latency`` in samples."""

    bands: tuple[Band, ...]
    threshold: float
    ratio: float
    attack: float
    release: float
    make_up: float
    reverb_seconds: float
    reverb_send: float
    pan: float
    gain: float
    latency: int


def process(voice: np.ndarray, settings: Settings, rate: int, seed: int, tail: float) -> np.ndarray:
    """(n,) -> (2, n + tail * rate + latency), float64: equalised, compressed, sent to a reverb, panned, late."""
    from scipy.signal import fftconvolve, sosfilt

    room = round(tail * rate)
    dry = sosfilt(np.stack([biquad(band, rate) for band in settings.bands]), np.pad(voice, (0, room)))
    dry = dry * _compressor_gain(dry, settings, rate)
    noise = np.random.default_rng(seed).standard_normal((2, round(settings.reverb_seconds * rate)))
    impulse = noise * 10 ** (-3 * np.arange(noise.shape[1]) / noise.shape[1])
    impulse *= 10 ** (settings.reverb_send / 20) / np.sqrt(np.sum(impulse**2, axis=1, keepdims=True))
    wet = fftconvolve(dry[None], impulse, axes=1)[:, : len(dry)]
    angle = np.pi / 4 * (1 + settings.pan)  # constant power
    stereo = 10 ** (settings.gain / 20) * (np.array([[np.cos(angle)], [np.sin(angle)]]) * dry + wet)
    return np.pad(stereo, ((0, 0), (settings.latency, 0)))


def biquad(band: Band, rate: int) -> np.ndarray:
    """(6,) second-order section of one band."""
    omega = 2 * np.pi * band.hertz / rate
    cosine, alpha, a = np.cos(omega), np.sin(omega) / (2 * band.q), 10 ** (band.decibels / 40)
    match band.kind:
        case "high_pass":
            b = [(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2]
            d = [1 + alpha, -2 * cosine, 1 - alpha]
        case "peak":
            b = [1 + alpha * a, -2 * cosine, 1 - alpha * a]
            d = [1 + alpha / a, -2 * cosine, 1 - alpha / a]
        case "high_shelf":
            root = 2 * np.sqrt(a) * alpha
            b = [
                a * ((a + 1) + (a - 1) * cosine + root),
                -2 * a * ((a - 1) + (a + 1) * cosine),
                a * ((a + 1) + (a - 1) * cosine - root),
            ]
            d = [
                (a + 1) - (a - 1) * cosine + root,
                2 * ((a - 1) - (a + 1) * cosine),
                (a + 1) - (a - 1) * cosine - root,
            ]
        case _:
            raise ValueError(f"no band of kind '{band.kind}': high_pass, peak, high_shelf")
    return np.array([*b, *d]) / d[0]


def _compressor_gain(wave: np.ndarray, settings: Settings, rate: int) -> np.ndarray:
    """(n,) linear gain: feed-forward, hard knee, the reduction smoothed with attack and release at the control rate."""
    count = -(-len(wave) // CONTROL)
    peaks = np.abs(np.pad(wave, (0, count * CONTROL - len(wave)))).reshape(count, CONTROL).max(axis=1)
    over = np.maximum(20 * np.log10(np.maximum(peaks, 1e-6)) - settings.threshold, 0.0)
    wanted = over * (1 - 1 / settings.ratio)
    rise, fall = (np.exp(-CONTROL / (rate * t / 1000)) for t in (settings.attack, settings.release))
    reduction, now = np.zeros(count), 0.0
    for i, target in enumerate(wanted.tolist()):
        keep = rise if target > now else fall
        now = keep * now + (1 - keep) * target
        reduction[i] = now
    smooth = np.interp(np.arange(len(wave)), (np.arange(count) + 0.5) * CONTROL, reduction)
    return 10 ** ((settings.make_up - smooth) / 20)
