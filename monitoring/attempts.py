"""A run's history as its attempts: from when to when each held its processes, how far it came, and how it ended.

The history is written by processes that may die at any line and by several hosts, so nothing here relies on a pair: an attempt without an
end is one that was killed, or that trains now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Event = dict[str, Any]

CLOSING = {"end", "superseded", "rolled_back"}  # events after which an attempt does nothing more
QUEUEING = {"queued", "requeued"}


@dataclass(frozen=True)
class Attempt:
    """One attempt. Times are seconds since the epoch; ``ended`` and ``how`` are None while nothing says that it has ended.

    ``how``: complete, failed, warned, terminated, interrupted, superseded, rolled_back, or hung. ``startup``: seconds by part, from the
    birth of its process to its first step. ``queued``: when its job was put into the queue, None where it was started by hand.
    """

    number: int
    began: float
    after_step: int
    world_size: int = 1
    job: str | None = None
    host: str = ""
    nodes: tuple[str, ...] = ()
    queued: float | None = None
    first_step: float | None = None
    startup: dict[str, float] = field(default_factory=dict)
    ended: float | None = None
    how: str | None = None
    step: int | None = None
    message: str = ""

    @property
    def born(self) -> float:
        """When its processes came into the world, and its GPUs were taken."""
        until_ready = sum(seconds for part, seconds in self.startup.items() if part != "first_step_s")
        return self.began - until_ready

    def node_of(self, rank: int) -> str:
        """The node on which ``rank`` ran, as far as it is known: ranks fill one node after the other."""
        if not self.nodes:
            return self.host
        return self.nodes[min(rank * len(self.nodes) // max(self.world_size, 1), len(self.nodes) - 1)]


def read_attempts(history: Sequence[Event]) -> list[Attempt]:
    """All attempts in the order in which they began."""
    found: list[Attempt] = []
    queued: float | None = None
    for event in events(history):
        kind = event["event"]
        if kind in QUEUEING:
            queued = float(event["time"])
        elif kind == "attempt" and "host" in event:
            found.append(_begin(event, queued))
            queued = None
        elif found and (kind in CLOSING or kind in ("first_step", "hung")):
            number = event.get("attempt", found[-1].number)
            at = next((i for i in reversed(range(len(found))) if found[i].number == number), None)
            if at is not None:
                found[at] = _told(found[at], event)
    return found


def events(history: Iterable[Any]) -> list[Event]:
    """What of a history is an event: a damaged file may hold anything."""
    return [e for e in history if isinstance(e, dict) and "event" in e and isinstance(e.get("time"), int | float)]


def _begin(event: Event, queued: float | None) -> Attempt:
    return Attempt(
        number=int(event["attempt"]),
        began=float(event["time"]),
        after_step=int(event.get("after_step", 0)),
        world_size=int(event.get("world_size") or 1),
        job=event.get("job_id"),
        host=str(event.get("host", "")),
        nodes=tuple(event.get("node_names") or ()),
        queued=queued,
    )


def _told(attempt: Attempt, event: Event) -> Attempt:
    """The attempt with what ``event`` adds."""
    at = float(event["time"])
    if event["event"] == "first_step":
        parts = {name: float(s) for name, s in event.items() if name.endswith("_s") and isinstance(s, int | float)}
        return replace(attempt, first_step=at, startup=parts)
    if event["event"] == "hung":  # every rank that waits says it, too; the first one's word stands
        step = event.get("after_step", attempt.step)
        return attempt if attempt.how else replace(attempt, ended=at, how="hung", step=step)
    how = str(event["reason"] if event["event"] == "end" else event["event"])
    return replace(
        attempt, ended=at, how=how, step=event.get("step", attempt.step), message=str(event.get("message") or "")
    )
