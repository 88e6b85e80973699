"""Integrated loudness by ITU-R BS.1770-4, without filtering sample by sample.

The K-weighting is a cascade of two recursive filters, in which every sample waits for the one before. Here L samples are filtered at
once: with the state s before a block x of L samples, its output is x T + s O and the next state x C + s P. So matrix products do the
work, and a recursion is left between blocks alone. It is the same filter, not an approximation. In double precision, so that what
different processors round differently is far below what is recorded. Source: Burrus, "Block realization of digital filters", IEEE
Trans. Audio Electroacoust. 20 (1972).

Shape legend: n samples, B blocks of L samples, H steps of 100 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LANES = 8  # float64 in the widest of vector registers
LONGEST_BLOCK = 50  # L is the largest that divides a step
TILE = 256  # blocks that are at work at a time: what fits into a core's cache
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
    """``output`` (L + 4, W): T above O, and zeros to the width W that vector units like. ``drive`` (L, 4): C. ``pairs``
    (2, 2, 2): P, in a basis in which the state falls into two pairs that do not touch."""

    block: int
    output: np.ndarray
    drive: np.ndarray
    pairs: np.ndarray


@lru_cache
def _block_filter(rate: int) -> _BlockFilter:
    from scipy.linalg import solve_sylvester
    from scipy.signal import sosfilt

    step = rate // STEPS
    assert step * STEPS == rate, rate
    block = max(length for length in range(1, LONGEST_BLOCK + 1) if step % length == 0)
    sections = k_weighting(rate)
    response, left = sosfilt(sections, np.eye(block), zi=np.zeros((2, block, 2)))
    states = np.eye(4).reshape(4, 2, 2).transpose(1, 0, 2)
    ringing, kept = sosfilt(sections, np.zeros((4, block)), zi=states)
    drive, after = left.transpose(1, 0, 2).reshape(block, 4), kept.transpose(1, 0, 2).reshape(4, 4)
    # The shelf's state feeds the high-pass' one: after = [[a, b], [0, d]]. In the basis s (1 z; 0 1) it does not
    basis = np.eye(4)
    basis[:2, 2:] = solve_sylvester(after[:2, :2], -after[2:, 2:], -after[:2, 2:])
    output = np.pad(np.vstack([response, np.linalg.solve(basis, ringing)]), [(0, 0), (0, -block % LANES)])
    pairs = np.stack([after[:2, :2], after[2:, 2:]])
    return _BlockFilter(block, output, drive @ basis, pairs)


def step_powers(tracks: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The mean square, K-weighted, of every whole step of 100 ms of ``tracks``, int16 (n,), full scale 1; and of their sum.

    (tracks + 1, H). Nothing more is filtered for the sum: the filter is linear.

    Args:
        rate: in Hz, a multiple of STEPS.
    """
    weighting, step = _block_filter(rate), rate // STEPS
    blocks = len(tracks[0]) // step * (step // weighting.block)
    cut = [track[: blocks * weighting.block].reshape(blocks, weighting.block) for track in tracks]
    states = [_states(track, weighting) if track.any() else None for track in cut]
    powers = np.zeros((len(tracks) + 1, blocks))
    before = np.empty((TILE, weighting.block + 4))  # of each block its samples, and the state before it
    for start in range(0, blocks, TILE):
        here = slice(start, min(start + TILE, blocks))
        size = here.stop - start
        total = np.zeros((size, weighting.output.shape[1]))
        for row, track, state in zip(powers, cut, states, strict=False):
            if state is not None:
                before[:size, : weighting.block], before[:size, weighting.block :] = track[here], state[here]
                weighted = before[:size] @ weighting.output
                row[here] = np.einsum("ij,ij->i", weighted, weighted)
                total += weighted
        powers[-1, here] = np.einsum("ij,ij->i", total, total)
    return powers.reshape(len(powers), -1, step // weighting.block).sum(axis=2) / (step * 32768.0**2)


def _states(blocks: np.ndarray, weighting: _BlockFilter) -> np.ndarray:
    """(B, L) -> (B, 4), the state before each block; at rest before the first.

    By Cayley and Hamilton a pair obeys t[k] = tr(p) t[k - 1] - det(p) t[k - 2] + u[k] + u[k - 1] (p - tr(p)), where u is what the blocks
    add: with that each member is filtered for itself.
    """
    from scipy.signal import lfilter

    driven = np.empty((4, len(blocks)))
    for start in range(0, len(blocks), TILE):
        here = slice(start, start + TILE)
        driven[:, here] = (blocks[here].astype(np.float64) @ weighting.drive).T
    states = np.zeros((len(blocks), 4))
    for own, pair in enumerate(weighting.pairs):
        pushed = driven[2 * own : 2 * own + 2]
        later = (pair - np.trace(pair) * np.eye(2)).T @ pushed[:, :-1]
        pushed[:, 1:] += later
        states[1:, 2 * own : 2 * own + 2] = lfilter(
            [1.0], [1.0, -np.trace(pair), np.linalg.det(pair)], pushed[:, :-1]
        ).T
    return states


def integrated(powers: np.ndarray) -> float:
    """LUFS, no less than QUIETEST, from (H,) ``step_powers``, those of both channels added up where it is stereo."""
    gated = np.convolve(powers, np.full(GATED, 1 / GATED), "valid") if len(powers) >= GATED else np.zeros(0)
    heard = gated[gated > 10 ** ((QUIETEST - OFFSET) / 10)]
    if not len(heard):
        return QUIETEST
    heard = heard[heard > heard.mean() * 10 ** (RELATIVE_GATE / 10)]
    return max(QUIETEST, OFFSET + 10 * math.log10(heard.mean()))
