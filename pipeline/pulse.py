"""What each rank tells of itself while it trains, and what rank 0 makes of it: who holds the others up, and how the GPUs do.

    ranks/rank_00003.json   {"time", "rank", "node", "step", "step_s", "own_s", "memory": {...}, "gpu": {...}}

Every rank's heartbeat thread replaces its own small file; rank 0's reads them all and sums them up in ``heartbeat.json``. Nothing
is asked of a rank in a step, and nothing travels between ranks.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.files import read_json, write_json
from pipeline.gpus import Gpu, own_gpu
from pipeline.memory import held, largest
from pipeline.runs import RunFolder
from pipeline.world import World

PULSE_SECONDS = 10.0  # between two files of one rank
FRESH_SECONDS = 1.0  # for which it is known what is held
WINDOW = 100  # steps of which the middle one counts
ENOUGH = 5  # of them, before a rank's pace is told
SLOW = 1.25  # times what the other ranks need
MATTERS = 0.1  # of a whole step: a difference below that holds nobody up


@dataclass(frozen=True)
class Straggler:
    """``own`` and ``others``: seconds a step that ``rank`` and (in the middle) the others need for themselves."""

    rank: int
    node: str
    own: float
    others: float

    @property
    def words(self) -> str:
        return (
            f"rank {self.rank} on node {self.node} holds the others up: "
            f"{self.own:.3g} s of its own a step, theirs take {self.others:.3g} s"
        )


class Pulse:
    """One rank's. ``stepped`` is called every step and costs next to nothing; the rest belongs to the heartbeat's thread."""

    def __init__(self, run: RunFolder, world: World, device: torch.device) -> None:
        self._run, self._world = run, world
        self.node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._own: deque[float] = deque(maxlen=WINDOW)
        self._whole: deque[float] = deque(maxlen=WINDOW)
        self._last: float | None = None
        self._step = 0
        self._device = device
        self._gpu: Gpu | None = None
        self._asked = False
        self._next = 0.0
        self._held: dict[str, int] = {}
        self._held_until = 0.0

    def stepped(self, step: int, own: float | None) -> None:
        """A step is done, for which this rank alone needed ``own`` seconds; the first of an attempt is left out by the caller."""
        now = time.perf_counter()
        if self._last is not None:
            self._whole.append(now - self._last)
        self._step, self._last = step, now
        if own is not None:
            self._own.append(own)

    def facts(self) -> dict[str, Any]:
        if not self._asked:
            self._gpu, self._asked = own_gpu(self._device), True
        gpu = asdict(self._gpu.look()) if self._gpu else None
        place = {"time": round(time.time(), 3), "rank": self._world.rank, "node": self.node}
        pace = {"step_s": _middle(self._whole), "own_s": _middle(self._own)}
        return {**place, "step": self._step, **pace, "memory": self.memory(), "gpu": gpu}

    def memory(self) -> dict[str, int]:
        """See ``memory.held``; at most a second old, for steps may be shorter than to ask."""
        now = time.monotonic()
        if now >= self._held_until:
            self._held, self._held_until = held(self._device), now + FRESH_SECONDS
        return self._held

    def write(self) -> None:
        """Replace this rank's file, at most every ten seconds. Raises OSError."""
        if self._world.size == 1 or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PULSE_SECONDS
        self._run.ranks.mkdir(exist_ok=True)
        write_json(self._run.rank_file(self._world.rank), self.facts(), durable=False)


class Pulses:
    """All ranks' as rank 0 sees them; files that are older than this attempt are another's."""

    def __init__(self, run: RunFolder, world: World, mine: Pulse) -> None:
        self._run, self._world, self._mine = run, world, mine
        self._next = 0.0
        self._others: list[dict[str, Any]] = []
        self.latest: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Forget what an earlier attempt has left."""
        for path in self._run.ranks.glob("rank_*.json"):
            path.unlink(missing_ok=True)

    def read(self) -> list[dict[str, Any]]:
        """In order of rank; those of the others are read every ten seconds."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PULSE_SECONDS
            found = [(rank, read_json(self._run.rank_file(rank))) for rank in range(1, self._world.size)]
            self._others = [p for rank, p in found if isinstance(p, dict) and p.get("rank") == rank]
        self.latest = [self._mine.facts(), *self._others]
        return self.latest

    def memory(self) -> dict[str, float]:
        """What is journalled of it: this rank's, and the others' as they have last told."""
        return largest([self._mine.memory(), *(pulse.get("memory") for pulse in self._others)])


def _middle(seconds: deque[float]) -> float | None:
    """The median of what the main thread is adding to meanwhile; None where there is too little."""
    values = list(seconds)
    return statistics.median(values) if len(values) >= ENOUGH else None


def straggler(pulses: Sequence[dict[str, Any]]) -> Straggler | None:
    """The rank that holds the others up most, if any does."""
    told = {p["rank"]: (p["own_s"], str(p.get("node"))) for p in pulses if p.get("own_s") is not None}
    if len(told) < 2:
        return None
    slowest = max(told, key=lambda rank: told[rank][0])
    own, node = told.pop(slowest)
    others = statistics.median(seconds for seconds, _ in told.values())
    step = max(p.get("step_s") or 0.0 for p in pulses)
    if own < SLOW * others or own - others < MATTERS * step:
        return None
    return Straggler(slowest, node, own, others)


def gpus_of(pulses: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """All GPUs in one line: mean use, the fullest memory, power and energy of all; None where nobody has one."""
    found = [p["gpu"] for p in pulses if p.get("gpu")]
    if not found:
        return None
    uses = _known(found, "use")
    fullest = max(found, key=lambda gpu: (gpu["memory"] or 0) / (gpu["total"] or 1))
    return {
        "count": len(found),
        "use": round(statistics.fmean(uses), 3) if uses else None,
        "memory": fullest["memory"],
        "memory_total": fullest["total"],
        "power_w": round(sum(_known(found, "power")), 1),
        "energy_kwh": round(sum(_known(found, "energy")) / 3.6e6, 6),
    }


def _known(gpus: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [gpu[key] for gpu in gpus if gpu[key] is not None]
