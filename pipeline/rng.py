"""Randomness that is keyed, not carried: a draw depends on (seed, what it is for, position) and on nothing else.

A restarted run therefore needs no generator state, and another number of GPUs draws the same noise for the same
sample. ``position`` is the global number of the sample since the run began (see ``loader``), so it differs in every epoch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import xxhash


def key(seed: int, stream: str, number: int = 0) -> int:
    """A 63-bit seed from the run's seed, the name of what is drawn, and a position or step."""
    return xxhash.xxh3_64_intdigest(struct.pack("<qq", seed, number) + stream.encode()) >> 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's default generators for one step (dropout and whatever else draws without a key)."""
    drawn = key(seed, f"step/{rank}", step)
    torch.default_generator.manual_seed(drawn)  # torch.manual_seed formats three stack traces where there is no GPU
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(drawn)


class KeyedRandom:
    """Draws per sample, equal on every world size.

    Each row i of a result is drawn by a generator of its own, seeded with (seed, stream, positions[i]).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(
        self, stream: str, positions: torch.Tensor, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """U(0, 1), shape (len(positions), *shape), float32 on ``device``."""
        return self._draw(torch.rand, stream, positions, shape, device)

    def normal(
        self, stream: str, positions: torch.Tensor, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """N(0, 1), shape (len(positions), *shape), float32 on ``device``."""
        return self._draw(torch.randn, stream, positions, shape, device)

    def _draw(self, draw, stream, positions, shape, device) -> torch.Tensor:
        generator = torch.Generator(device=device)
        rows = torch.empty((len(positions), *shape), device=device)
        for i, position in enumerate(positions.tolist()):
            generator.manual_seed(key(self.seed, stream, position))
            draw(tuple(shape), generator=generator, out=rows[i])
        return rows
