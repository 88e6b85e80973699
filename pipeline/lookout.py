"""What will go wrong if nobody looks: a slow rank, idle GPUs, a disk that fills, a time limit too near to ever save.

Rank 0's heartbeat thread looks; no step does. What holds now stands in ``heartbeat.json``, and the first time of each in an attempt is in
the run's history (event ``warning``), for whoever asks later.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.deadline import Deadline
from pipeline.pulse import Pulses, Straggler, gpus_of, straggler
from pipeline.runs import RunFolder

PERSISTS = 30.0  # seconds for which a rank must be the slow one before it is history: a moment's hiccup is none
DISK_SECONDS = 60.0  # between two looks at the disk
CHECKPOINTS = 3  # that must find room beside those that are there: a new one is written before an old one goes
SPARE = 1 << 30  # bytes for samples, journals and logs
IDLE = 0.05  # share of the time in which a GPU that trains should be doing more
IDLE_SECONDS = 270.0  # over which that is judged


@dataclass(frozen=True)
class Concern:
    """``what``: slow_rank, gpu_idle, disk or time_limit; ``message`` for a person."""

    what: str
    message: str
    rank: int | None = None
    node: str | None = None


class Lookout:
    """``gpus``: what ``gpus_of`` said at the last look."""

    def __init__(self, run: RunFolder, attempt: int, pulses: Pulses, deadline: Deadline) -> None:
        self._run, self._attempt, self._pulses, self._deadline = run, attempt, pulses, deadline
        self._told: set[tuple[str, int | None]] = set()
        self._slow: tuple[int, float] | None = None  # the slow rank, and since when
        self._disk: Concern | None = None
        self._next_disk = 0.0
        self.gpus: dict[str, Any] | None = None

    def look(self, trained_since: float | None) -> dict[str, Any]:
        """What the heartbeat says of it; new concerns are noted in the history.

        Args:
            trained_since: when this attempt's first step was done (Unix time); None: it is not.
        """
        pulses = self._pulses.read()
        self.gpus = gpus_of(pulses)
        slow = straggler(pulses)
        concerns = [*self._of_rank(slow), *_idle(pulses), *self._of_disk(), *self._of_time(trained_since)]
        for concern in concerns:
            if (concern.what, concern.rank) not in self._told:
                self._told.add((concern.what, concern.rank))
                place = {} if concern.rank is None else {"rank": concern.rank, "node": concern.node}
                self._run.note("warning", attempt=self._attempt, what=concern.what, message=concern.message, **place)
        return {"gpu": self.gpus, "warnings": [concern.message for concern in concerns]}

    def _of_rank(self, slow: Straggler | None) -> Iterator[Concern]:
        if slow is None or self._slow is None or slow.rank != self._slow[0]:
            self._slow = (slow.rank, time.monotonic()) if slow else None
        if slow and self._slow and time.monotonic() - self._slow[1] >= PERSISTS:
            yield Concern("slow_rank", slow.words, slow.rank, slow.node)

    def _of_disk(self) -> Iterator[Concern]:
        if time.monotonic() >= self._next_disk:
            self._next_disk = time.monotonic() + DISK_SECONDS
            self._disk = _filling(self._run)
        if self._disk:
            yield self._disk

    def _of_time(self, trained_since: float | None) -> Iterator[Concern]:
        missing = self._deadline.missing(trained_since) if trained_since is not None else 0.0
        if missing > 0:
            yield Concern(
                "time_limit",
                f"the time limit is too near to ever get on: a slow step and the last save need {missing:.0f} s more than this job "
                "has from its first step to its end; ask for more with --time",
            )


def _idle(pulses: list[dict[str, Any]]) -> Iterator[Concern]:
    seen = [p for p in pulses if (gpu := p.get("gpu")) and gpu["use"] is not None and gpu["seconds"] >= IDLE_SECONDS]
    idle = [p for p in seen if p["gpu"]["use"] < IDLE]
    if idle and len(idle) == len(pulses):
        yield Concern("gpu_idle", f"all GPUs are idle: {idle[0]['gpu']['use']:.0%} busy over the last five minutes")
        return
    for pulse in idle:
        rank, node = pulse["rank"], pulse["node"]
        message = (
            f"the GPU of rank {rank} on node {node} is idle: {pulse['gpu']['use']:.0%} busy over the last five minutes"
        )
        yield Concern("gpu_idle", message, rank, node)


def _filling(run: RunFolder) -> Concern | None:
    """Whether the next checkpoints may find no room. Quotas are not seen: ``statvfs`` speaks of the file system."""
    try:
        free = shutil.disk_usage(run.path).free
        newest = max(run.checkpoints.glob("step_*"), default=None)
        size = _size(newest) if newest else 0
    except OSError:  # pruned while it was measured, or a disk that does not answer: the next look tells
        return None
    needed = CHECKPOINTS * size + SPARE
    if free >= needed:
        return None
    return Concern(
        "disk",
        f"the disk is filling: {free / 1e9:.1f} GB free where {CHECKPOINTS} checkpoints of {size / 1e9:.2g} GB and "
        f"{SPARE / 1e9:.1f} GB beside them should find room",
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
