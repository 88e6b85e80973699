"""Where one process stands among its peers. Imports nothing, so that a job can know it before the slow imports begin."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes; ``local_rank`` of ``local_size`` on node ``node``."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0

    @property
    def nodes(self) -> int:
        return self.size // self.local_size
