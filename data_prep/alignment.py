"""How much later one recording of a sound is than another, by cross-correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRETCH = 1 << 21  # samples that are compared, the loudest of the recording (44 s at 48 kHz)
WHITENING = 0.5  # 0: plain correlation, 1: phase alone (GCC-PHAT; Knapp and Carter 1976)


@dataclass(frozen=True)
class Lag:
    """``lag`` in samples, positive where the second recording is later; ``correlation`` (-1 to 1) once that is undone."""

    lag: int
    correlation: float


def estimate_lag(first: np.ndarray, second: np.ndarray, most: int) -> Lag:
    """Of two (n,) recordings, n may differ; ``most`` bounds the absolute lag. A correlation of 0 for silence.

    The spectra are whitened halfway, so that the peak is sharp although voices are tonal and equalisers colour them.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    start = _loudest(first, STRETCH)
    piece = first[start : start + STRETCH]
    begin = max(0, start - most)
    window = second[begin : start + len(piece) + most]
    if not piece.any() or not window.any():
        return Lag(0, 0.0)
    size = next_fast_len(len(piece) + len(window), real=True)
    cross = rfft(window, size) * np.conj(rfft(piece, size))
    weighted = irfft(cross / np.maximum(np.abs(cross), 1e-12 * np.abs(cross).max()) ** WHITENING, size)
    lags = np.arange(-most, most + 1)
    at = int(lags[np.abs(weighted[(lags + start - begin) % size]).argmax()])
    one, other = aligned(first[None], second[None], at)
    return Lag(at, _correlation(one[0], other[0]))


def aligned(first: np.ndarray, second: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """(C, n) and (D, m) -> (C, k) and (D, k): what both have once ``second`` is ``lag`` samples earlier."""
    first, second = first[:, max(0, -lag) :], second[:, max(0, lag) :]
    common = min(first.shape[1], second.shape[1])
    return first[:, :common], second[:, :common]


def _loudest(wave: np.ndarray, length: int) -> int:
    """Where the stretch of ``length`` with the most energy begins."""
    if len(wave) <= length:
        return 0
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    return int((energy[length:] - energy[:-length]).argmax())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    energy = float(np.sqrt(np.sum(np.square(first, dtype=np.float64)) * np.sum(np.square(second, dtype=np.float64))))
    return float(np.dot(first.astype(np.float64), second.astype(np.float64))) / energy if energy else 0.0
