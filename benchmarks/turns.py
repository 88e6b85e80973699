"""Two contenders that take turns in one process, so that a busy moment of the machine hits both."""

from __future__ import annotations

import time
from collections.abc import Callable

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of this process alone
WARM = 2  # rounds that are not counted

Work = Callable[[], object]


def in_turns(
    ours: Work, theirs: Work, rounds: int, clock: Callable[[], float], warm: int = WARM
) -> tuple[list[float], list[float]]:
    """Seconds of each, round by round."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(warm + rounds):
        order = ((ours, found[0]), (theirs, found[1]))
        for work, times in order if number % 2 else order[::-1]:
            began = clock()
            work()
            times.append(clock() - began)
    return found[0][warm:], found[1][warm:]
