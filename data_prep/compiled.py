"""The loop of preparation that NumPy has no pass for, because each sample waits for the one before: K-weighting, compiled by numba.

Not ``fastmath``: every rounding is where it is written, so other processors give the same bits. Compiled once for a kind of processor,
and kept beside the bytecode. Imported where it is called: what only looks at a preparation does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit


def _compiled(function: Callable[..., None]) -> Any:
    try:
        return njit(cache=True, error_model="numpy", nogil=True)(function)
    except RuntimeError:  # no place to keep it, where code and home are read-only: each process compiles it for itself
        return njit(error_model="numpy", nogil=True)(function)


@_compiled
def weigh(
    track: np.ndarray, sections: np.ndarray, state: np.ndarray, step: int, energies: np.ndarray, total: np.ndarray
) -> None:
    """Filter ``track``, int16 (n,), by two second-order ``sections`` (2, 6), the numerator of the second being 1 -2 1.

    ``energies`` float64 (n / step,) is given each step's sum of squares; the output is added to ``total`` float64 (n,), and ``state``
    (6,) is carried from call to call: the last two of input, of the first section's output and of the second's; zeros at rest.
    """
    b0, b1, b2, _, a1, a2 = sections[0]
    _, _, _, _, c1, c2 = sections[1]
    x1, x2, u1, u2, y1, y2 = state
    for number in range(len(energies)):
        energy = 0.0
        for i in range(number * step, (number + 1) * step):
            x = float(track[i])
            u = (b0 * x + b1 * x1 + b2 * x2 - a2 * u2) - a1 * u1
            y = ((u - 2 * u1 + u2) - c2 * y2) - c1 * y1
            x1, x2, u1, u2, y1, y2 = x, x1, u, u1, y, y1
            energy += y * y
            total[i] += y
        energies[number] = energy
    state[:] = np.array((x1, x2, u1, u2, y1, y2))
