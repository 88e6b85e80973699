"""The order in which training sees the samples: a pure function of (seed, epoch, position), so no state can be lost.

``position`` p is the global number of samples consumed since the run began; epoch = p // N, and the sample is
π(seed, epoch)(p mod N), a bijection of 0..N-1 for every N. π is built so that reading stays cheap:

1. ``block`` neighbouring samples keep together; the blocks are permuted over the whole split (a Feistel network).
   The few samples that fill no block come last, and a rotation of all samples per epoch changes which those are.
2. Within a window of ``WINDOW`` consecutive positions the samples are shuffled.

So a window holds samples from everywhere, yet touches only ``WINDOW / block`` places on disk. Nothing of size N is
ever made: the cost of a look-up is that of its window, at any position of any split.
"""

from __future__ import annotations

from collections import OrderedDict
from math import isqrt

import numpy as np

from pipeline.rng import key

WINDOW = 1024  # positions shuffled together; a power of two, so that whole blocks fit
MAX_BLOCK = 16  # 64 places in a window
NEIGHBOURHOOD = 1 << 20  # bytes that are worth reading in one place
ROUNDS = 4  # two additions each; the tests look for what is left of the input order

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def block_size(sample_bytes: float) -> int:
    """How many neighbours to keep together for samples of that mean size: 1 (large samples) .. MAX_BLOCK, a power of two."""
    block = 1
    while block < MAX_BLOCK and 2 * block * sample_bytes <= NEIGHBOURHOOD:
        block *= 2
    return block


class Order:
    """π for one split of ``samples`` samples (>= 1); ``block`` a power of two, at most WINDOW."""

    def __init__(self, samples: int, seed: int, block: int = MAX_BLOCK) -> None:
        assert samples >= 1 and WINDOW % block == 0
        self.samples, self.seed, self.block = samples, seed, block
        self._windows = -(-samples // WINDOW)
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()  # a batch mostly falls into the window of the last

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids, int64 (B,), at ``positions``, int64 (B,), each >= 0 and in any order."""
        epochs, within = np.divmod(positions, self.samples)
        windows, places = np.divmod(within, WINDOW)
        windows += epochs * self._windows
        if len(windows) and (windows == windows[0]).all():
            return self._window(int(windows[0]))[places]
        ids = np.empty(len(positions), np.int64)
        for window in np.unique(windows):
            here = windows == window
            ids[here] = self._window(int(window))[places[here]]
        return ids

    def _window(self, number: int) -> np.ndarray:
        """The sample ids of one window, int64 (at most WINDOW,), in the order in which they are seen."""
        ids = self._recent.get(number)
        if ids is None:
            ids = self._recent[number] = self._make_window(*divmod(number, self._windows))
            if len(self._recent) > 8:
                self._recent.popitem(last=False)
        return ids

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        first = window * WINDOW
        count = min(WINDOW, self.samples - first)
        shuffled = np.argsort(_hash(np.arange(count, dtype=np.uint64), key(self.seed, f"order/window/{epoch}", window)))
        slots, inside = np.divmod(first + shuffled, self.block)
        whole = self.samples // self.block  # blocks; what is left over stays in place, after them
        ids = first + shuffled
        blocks = np.arange(first // self.block, min((first + count) // self.block, whole), dtype=np.uint64)
        if len(blocks):
            places = permute(blocks, whole, key(self.seed, "order/blocks", epoch)).astype(np.int64)
            full = slots < whole
            ids[full] = places[slots[full] - first // self.block] * self.block + inside[full]
        return (ids + key(self.seed, "order/rotation", epoch) % self.samples) % self.samples


def permute(numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A keyed pseudorandom bijection of 0..count-1, applied to ``numbers``, uint64 (B,); uint64 (B,).

    A Feistel network on a grid of rows x columns >= count cells whose halves are mixed by modular addition; what
    falls on a cell beyond ``count`` walks on along its cycle until it is back (the grid exceeds count by less than a row).
    """
    rows = isqrt(count - 1) + 1
    columns = -(-count // rows)
    result = numbers.copy()
    outside = np.arange(len(numbers))
    while len(outside):
        left, right = np.divmod(result[outside], np.uint64(columns))
        for turn in range(ROUNDS):
            left = (left + _hash(right, seed + 2 * turn) % np.uint64(rows)) % np.uint64(rows)
            right = (right + _hash(left, seed + 2 * turn + 1) % np.uint64(columns)) % np.uint64(columns)
        moved = left * np.uint64(columns) + right
        result[outside] = moved
        outside = outside[moved >= count]
    return result


def _hash(numbers: np.ndarray, seed: int) -> np.ndarray:
    """64 well-mixed bits from each of ``numbers``, uint64 (B,), by the generator splitmix64 started at a 63-bit seed.

    A bijection for each seed: different numbers never collide, so sorting by it is a shuffle without ties.
    """
    x = (numbers + np.uint64(1)) * _GOLDEN + np.uint64(seed)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
