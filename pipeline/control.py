"""Signals only set a flag; the loop acts on it at a step boundary, when all ranks have agreed.

SIGTERM is what preemption and a time limit send, SIGUSR2 the early warning asked of SLURM, SIGINT a person's Ctrl-C.
Nothing is saved inside a handler: there a collective would deadlock and a file be half written.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop(enum.IntEnum):
    """Why ranks stop; of several the largest wins. The value travels in the agreement."""

    NO = 0
    WARNED = 1  # SIGUSR2: the time limit is near
    TERMINATED = 2  # SIGTERM: preempted, cancelled, or out of time
    INTERRUPTED = 3  # SIGINT: a person
    SUPERSEDED = 4  # a later attempt holds the lease: do not write any more

    @property
    def words(self) -> str:
        return {
            Stop.WARNED: "the time limit is near",
            Stop.TERMINATED: "terminated from outside",
            Stop.INTERRUPTED: "interrupted by hand",
            Stop.SUPERSEDED: "a later attempt has taken over",
        }.get(self, "not stopped")


_MEANING = {signal.SIGUSR2: Stop.WARNED, signal.SIGTERM: Stop.TERMINATED, signal.SIGINT: Stop.INTERRUPTED}


class StopFlag:
    """The flag that the handlers set, and the loop or the lease check may set too."""

    def __init__(self) -> None:
        self.value = Stop.NO

    def raise_to(self, reason: Stop) -> None:
        self.value = max(self.value, reason)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.raise_to(_MEANING[signal.Signals(number)])

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Within the block the three signals set this flag and do nothing else."""
        before = {number: signal.signal(number, self._handle) for number in _MEANING}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
