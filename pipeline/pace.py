"""What a step takes of one rank alone, apart from what it waits for others: by it a slow rank is known, for all ranks step alike.

Data-parallel ranks meet in every step, so the slowest sets the pace of all, and a step is equally long everywhere. Counted here is a step
without the calls in which ranks meet: under DDP the backward in which gradients travel, for a module with several optimizers their
averaging. No rank is asked anything in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Pace:
    """Clock of one rank's own work, on a device that does what it is told at once (the CPU)."""

    def __init__(self) -> None:
        self._began = self._met = self._waited = 0.0

    def begin(self, waited: float) -> None:
        """A step begins, after this rank has waited so many seconds for its data."""
        self._waited, self._met, self._began = waited, 0.0, time.perf_counter()

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Within the block this rank may wait for the others."""
        began = time.perf_counter()
        yield
        self._met += time.perf_counter() - began

    def own(self) -> float | None:
        """Seconds of this rank's own since ``begin``, data included; None where that is not known yet."""
        return self._waited + time.perf_counter() - self._began - self._met


class DevicePace(Pace):
    """The same for a device that works behind the program's back: its own events say how long it was busy until ranks met first.

    Events are asked only whether they have passed, so the step waits for nothing; a step's figure is known a step or two later.

    Args:
        event: makes an event that can be timed.
    """

    def __init__(self, event: Callable[[], Any]) -> None:
        super().__init__()
        self._event = event
        self._first: Any = None
        self._marks: tuple[Any, Any, float] | None = None  # of a step whose end has not been seen yet

    def begin(self, waited: float) -> None:
        super().begin(waited)
        if self._marks is None:
            self._first = self._event()
            self._first.record()

    @contextmanager
    def meeting(self) -> Iterator[None]:
        if self._first is not None and self._marks is None:
            met = self._event()
            met.record()
            self._marks = (self._first, met, self._waited)
        yield

    def own(self) -> float | None:
        if self._marks is None or not self._marks[1].query():
            return None
        first, met, waited = self._marks
        self._first = self._marks = None
        return waited + first.elapsed_time(met) / 1000


def pace_on(device: torch.device) -> Pace:
    if device.type == "cuda":
        return DevicePace(lambda: torch.cuda.Event(enable_timing=True))
    return Pace()
