"""Integrated loudness by ITU-R BS.1770-4.

The K-weighting is a cascade of two recursive filters in double precision, in which every sample waits for the one before: a compiled
loop (``compiled.weigh``), given pieces of the tracks that fit into a core's cache, so that their sum is measured without a further
filter.

Shape legend: n samples, H steps of 100 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STEPS = 10  # a second
TILE = 8  # steps that are at work at a time: what fits into a core's cache
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


def step_powers(tracks: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The mean square, K-weighted, of every whole step of 100 ms of ``tracks``, int16 (n,), full scale 1; and of their sum.

    (tracks + 1, H). Nothing more is filtered for the sum: the filter is linear.

    Args:
        rate: in Hz, a multiple of STEPS.
    """
    from data_prep.compiled import weigh

    sections, step = k_weighting(rate), rate // STEPS
    assert step * STEPS == rate, rate
    steps = len(tracks[0]) // step
    states, powers = np.zeros((len(tracks), 6)), np.zeros((len(tracks) + 1, steps))
    heard = [bool(track.any()) for track in tracks]
    for start in range(0, steps, TILE):
        here = slice(start, min(start + TILE, steps))
        samples = slice(here.start * step, here.stop * step)
        total = np.zeros(samples.stop - samples.start)
        for number, track in enumerate(tracks):
            if heard[number]:
                weigh(np.ascontiguousarray(track[samples]), sections, states[number], step, powers[number, here], total)
        cut = total.reshape(-1, step)
        powers[-1, here] = np.einsum("ij,ij->i", cut, cut)
    return powers / (step * 32768.0**2)


def integrated(powers: np.ndarray) -> float:
    """LUFS, no less than QUIETEST, from (H,) ``step_powers``, those of both channels added up where it is stereo."""
    gated = np.convolve(powers, np.full(GATED, 1 / GATED), "valid") if len(powers) >= GATED else np.zeros(0)
    heard = gated[gated > 10 ** ((QUIETEST - OFFSET) / 10)]
    if not len(heard):
        return QUIETEST
    heard = heard[heard > heard.mean() * 10 ** (RELATIVE_GATE / 10)]
    return max(QUIETEST, OFFSET + 10 * math.log10(heard.mean()))
