"""Progress of counted work: a live bar with rate and time left on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


class Progress:
    """``with Progress("rendering", "tracks", 150) as p: p.update(17)``. ``done`` is what an earlier attempt had finished."""

    def __init__(self, verb: str, unit: str, total: int, done: int = 0) -> None:
        self.verb, self.unit, self.total = verb, unit, total
        self._first, self._done = done, done
        self._start = time.monotonic()
        self._next = self._start + PLAIN_INTERVAL
        console = Console(stderr=True)
        self._bar: RichProgress | None = None
        if console.is_terminal:
            columns = (TextColumn(verb), BarColumn(), TextColumn("{task.fields[facts]}"))
            self._bar = RichProgress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(verb, total=total, completed=done, facts="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None = None) -> None:
        """``done`` of ``total`` now; ``total`` where it was not known before."""
        self._done, self.total = done, total or self.total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, facts=self.facts())
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_INTERVAL
            print(f"{self.verb}: {self.facts()}", file=sys.stderr, flush=True)

    def facts(self) -> str:
        """``96/150 tracks  31.2 tracks/s  0:00:02 left``."""
        rate = (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = timedelta(seconds=round((self.total - self._done) / rate)) if rate > 0 else "?"
        return f"{self._done}/{self.total} {self.unit}  {rate:.1f} {self.unit}/s  {left} left"
