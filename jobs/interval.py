"""How often to save: the interval between checkpoints at which a run loses least to saving and to failures.

Young (CACM 17, 1974) and Daly (FGCS 22, 2006): a save costs the run a stall, a failure costs half an interval. Nodes fail independently,
so n of them fail n times as often. The loop stalls only while a checkpoint is copied, not while it is written; but a save waits for the
one before, so no interval is shorter than a write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DAY = 86400.0
# Of one node of eight A100: 6.5 failures in 1,000 node-days on the cluster RSC-1 (Kokolis et al., arXiv 2410.21680).
NODE_MTBF = 1000 / 6.5 * DAY
WRITE_RATE = 1e9  # bytes/s onto a shared file system; a run's own is its metric time/save_write_s
LEAST_WRITE = 1.0  # seconds: hashes, fsyncs and renames of the smallest one there
STALL = 0.05  # of the write time, at most: what benchmarks/checkpoint.py looks at
NODES = (1, 8, 64)


@dataclass(frozen=True)
class Saving:
    """Seconds that a checkpoint takes to be written, and for which the loop stalls."""

    write: float
    stall: float

    @classmethod
    def of_bytes(cls, size: int) -> Saving:
        """As estimated for a shared file system."""
        write = max(LEAST_WRITE, size / WRITE_RATE)
        return cls(write, STALL * write)


def best_interval(saving: Saving, mtbf: float) -> float:
    """Seconds between two saves where something fails every ``mtbf`` seconds (Daly's equation 37, never below a write)."""
    ratio = saving.stall / (2 * mtbf)
    if ratio >= 1:
        return max(mtbf, saving.write)
    daly = math.sqrt(2 * saving.stall * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - saving.stall
    return max(daly, saving.write)


def recommendation(size: int) -> str:
    """One line for a checkpoint of ``size`` bytes."""
    saving = Saving.of_bytes(size)
    each = ", ".join(f"{best_interval(saving, NODE_MTBF / n) / 60:.1f} min on {n}" for n in NODES)
    return (
        f"save every {each} nodes (a write of {saving.write:.1f} s, one failure in {NODE_MTBF / DAY:.0f} node-days): "
        "trainer.save_every = 60 x that x time/steps_per_s"
    )
