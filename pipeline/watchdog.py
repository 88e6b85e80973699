"""Ends a rank that makes no progress, after writing down where all its threads stand.

A hang is worse than a crash: it burns the allocation to the time limit. Every rank watches itself; where one hangs the others wait for
it in a collective, so all of them fire, and the rank whose stack is *not* in a collective is the one to look at.
"""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.flight import write_collectives
from pipeline.runs import RunFolder

EXIT_HUNG = 70
FACTOR = 10.0  # times the median step
PATIENT = (
    1500.0  # seconds that rank 0 may work alone; less than the half hour after which the others give up waiting (gloo)
)


class Watchdog:
    """Watch one rank. ``alive`` is called at every step, and within validation and saving.

    Args:
        least: seconds without a sign of life below which nothing is ever taken for a hang.
        compiling: is the first step one in which the network is compiled? It is given 25 minutes.
    """

    def __init__(self, run: RunFolder, rank: int, least: float, *, compiling: bool = False) -> None:
        self._run, self._rank, self._least = run, rank, least
        self._first = max(least, PATIENT) if compiling else least
        self._durations: deque[float] = deque(maxlen=101)
        self._step = 0
        self._patient = False
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Watch within the block, which begins after ``step``."""
        self._step, self._last = step, time.monotonic()
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def stepped(self, step: int) -> None:
        now = time.monotonic()
        self._durations.append(now - self._last)
        self._step, self._last = step, now

    def alive(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within the block 25 minutes without a sign of life are no hang: rank 0 saves or samples, and the others wait for it.

        All ranks enter it, and leave it by an agreement.
        """
        self.alive()
        self._patient = True
        try:
            yield
        finally:
            self.alive()
            self._patient = False

    @property
    def limit(self) -> float:
        """Seconds without a sign of life that count as a hang: the larger of ``least`` and 10 median steps."""
        usual = max(self._least, FACTOR * statistics.median(self._durations)) if self._durations else self._first
        return max(usual, PATIENT) if self._patient else usual

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._least / 4)):
            silent = time.monotonic() - self._last
            limit = self.limit
            if silent > limit:
                self._fire(silent, limit)

    def _fire(self, silent: float, limit: float) -> None:
        times = {"silent_s": round(silent, 1), "limit_s": round(limit, 1)}
        try:
            self._run.note("hung", rank=self._rank, after_step=self._step, **times, stacks=self._stacks())
            write_collectives(self._run.logs / f"{self._name}_collectives.json")
            time.sleep(2.0)  # the other ranks write theirs at about the same moment
        finally:
            os._exit(EXIT_HUNG)

    @property
    def _name(self) -> str:
        return f"hung_rank{self._rank}_step{self._step}"

    def _stacks(self) -> str:
        """Write where all threads stand into a file, or where that is impossible to stderr; its name."""
        path = self._run.logs / f"{self._name}.txt"
        try:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            return path.name
        except OSError as error:
            print(f"warning: {path} cannot be written ({error.strerror}); the stacks:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return "stderr"
