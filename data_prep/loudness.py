"""Integrated loudness by ITU-R BS.1770-4, without filtering sample by sample.

The K-weighting is a cascade of two recursive filters, in which every sample waits for the one before. Here L samples are filtered at
once: with the state s before a block x of L samples, its output is x T + s O and the next state x C + s P. So matrix products do the
work, and a recursion is left between blocks alone. It is the same filter, not an approximation. Source: Burrus, "Block realization of
digital filters", IEEE Trans. Audio Electroacoust. 20 (1972).

Shape legend: n samples, B blocks of L samples, H steps of 100 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 64  # L
STEPS = 10  # a second
GATED = 4  # steps in a gating block: 400 ms, overlapping by three quarters
OFFSET = -0.691  # dB
QUIETEST = -70.0  # LUFS, the absolute gate: what lies below counts as silence
RELATIVE_GATE = -10.0  # LU
SHELF = 1681.974450955533, 0.7071752369554196  # Hz and Q
SHELF_GAIN, SHELF_MIDDLE = 10 ** (3.999843853973347 / 20), 0.4996667741545416  # at the top; its exponent at the corner
HIGH_PASS = 38.13547087602444, 0.5003270373238773  # Hz and Q


def k_weighting(rate: int) -> np.ndarray:
    """The two filters as second-order sections (2, 6) for ``rate`` in Hz.

    BS.1770-4 prints coefficients for 48 kHz alone; these are the analogue filters behind them, transformed bilinearly, and at 48 kHz
    they are the printed ones.
    """
    k, q = math.tan(math.pi * SHELF[0] / rate), SHELF[1]
    middle = SHELF_GAIN**SHELF_MIDDLE * k / q
    shelf = (SHELF_GAIN + middle + k * k, 2 * (k * k - SHELF_GAIN), SHELF_GAIN - middle + k * k)
    poles = 1 + k / q + k * k
    first = [*(b / poles for b in shelf), 1, 2 * (k * k - 1) / poles, (1 - k / q + k * k) / poles]
    k, q = math.tan(math.pi * HIGH_PASS[0] / rate), HIGH_PASS[1]
    poles = 1 + k / q + k * k
    return np.array([first, [1, -2, 1, 1, 2 * (k * k - 1) / poles, (1 - k / q + k * k) / poles]])


@dataclass(frozen=True)
class _BlockFilter:
    """``output`` float32 (L + 4, L): T above O. ``drive`` float32 (L, 4): C. ``pairs`` float64 (2, 2, 2): P, in a basis in
    which the state falls into two pairs that do not touch."""

    output: np.ndarray
    drive: np.ndarray
    pairs: np.ndarray


@lru_cache
def _block_filter(rate: int) -> _BlockFilter:
    from scipy.linalg import solve_sylvester
    from scipy.signal import sosfilt

    sections = k_weighting(rate)
    response, left = sosfilt(sections, np.eye(BLOCK), zi=np.zeros((2, BLOCK, 2)))
    states = np.eye(4).reshape(4, 2, 2).transpose(1, 0, 2)
    ringing, kept = sosfilt(sections, np.zeros((4, BLOCK)), zi=states)
    drive, step = left.transpose(1, 0, 2).reshape(BLOCK, 4), kept.transpose(1, 0, 2).reshape(4, 4)
    # The shelf's state feeds the high-pass' one: step = [[a, b], [0, d]]. In the basis s (1 z; 0 1) it does not
    basis = np.eye(4)
    basis[:2, 2:] = solve_sylvester(step[:2, :2], -step[2:, 2:], -step[:2, 2:])
    output = np.vstack([response, np.linalg.solve(basis, ringing)])
    pairs = np.stack([step[:2, :2], step[2:, 2:]])
    return _BlockFilter(output.astype(np.float32), (drive @ basis).astype(np.float32), pairs)


def k_weighted(audio: np.ndarray, rate: int) -> np.ndarray:
    """int16 (n,), full scale 32768 -> float32 (n,), K-weighted, on the same scale."""
    weighting = _block_filter(rate)
    whole = len(audio) // BLOCK
    before = np.empty((whole + 1, BLOCK + 4), np.float32)  # of every block its samples, and the state before it
    before[:whole, :BLOCK] = audio[: whole * BLOCK].reshape(whole, BLOCK)
    before[0, BLOCK:] = before[whole, :BLOCK] = 0
    before[whole, : len(audio) - whole * BLOCK] = audio[whole * BLOCK :]
    before[1:, BLOCK:] = _states((before[:whole, :BLOCK] @ weighting.drive).T, weighting.pairs).T
    return (before @ weighting.output).reshape(-1)[: len(audio)]


def _states(driven: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(4, B), the states after each block, from what each adds to them; at rest before the first.

    By Cayley and Hamilton a pair obeys t[k] = tr(p) t[k - 1] - det(p) t[k - 2] + u[k] + u[k - 1] (p - tr(p)): with that each member
    is filtered for itself.
    """
    from scipy.signal import lfilter

    states = driven.astype(np.float64, order="C")
    for own, pair in enumerate(pairs):
        rows = slice(2 * own, 2 * own + 2)
        states[rows, 1:] += (pair - np.trace(pair) * np.eye(2)).T @ states[rows, :-1]
        states[rows] = lfilter([1.0], [1.0, -np.trace(pair), np.linalg.det(pair)], states[rows])
    return states


def step_powers(weighted: np.ndarray, rate: int) -> np.ndarray:
    """K-weighted (n,) -> float32 (H,), the mean square of each whole step of 100 ms."""
    step = rate // STEPS
    assert step * STEPS == rate, rate
    steps = weighted[: len(weighted) // step * step].reshape(-1, step)
    return np.einsum("ij,ij->i", steps, steps) / np.float32(step)


def integrated(powers: np.ndarray) -> float:
    """LUFS, no less than QUIETEST, from (H,) ``step_powers`` at full scale 32768, of all channels together (1 or 2, which weigh alike)."""
    steps = powers.astype(np.float64) / 32768.0**2
    gated = np.convolve(steps, np.full(GATED, 1 / GATED), "valid") if len(steps) >= GATED else np.zeros(0)
    heard = gated[gated > 10 ** ((QUIETEST - OFFSET) / 10)]
    if not len(heard):
        return QUIETEST
    heard = heard[heard > heard.mean() * 10 ** (RELATIVE_GATE / 10)]
    return max(QUIETEST, OFFSET + 10 * math.log10(heard.mean()))
