"""Progress for people: a live line with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

PLAIN_INTERVAL = 5.0  # seconds between lines of work where there is no terminal


class Progress:
    """Shows work with a known end: ``with Progress("rendering", "tracks", 150) as p: p.update(17)``.

    Args:
        done: what an earlier attempt had finished.
        number: writes amounts and rates out; default: ``96`` and ``31.2``.
    """

    def __init__(
        self, verb: str, unit: str, total: int, done: int = 0, number: Callable[[float], str] | None = None
    ) -> None:
        self.verb, self.total = verb, total
        self._unit = f" {unit}" if unit else ""
        self._number = number or (lambda value: f"{value:.1f}" if isinstance(value, float) else str(value))
        self._first, self._done = done, done
        self._start = time.monotonic()
        self._next = self._start + PLAIN_INTERVAL
        console = Console(stderr=True)
        self._bar: Bar | None = None
        if console.is_terminal and sys.stderr.isatty():  # a notebook calls itself a terminal, and keeps every frame
            columns = (TextColumn(verb), BarColumn(), TextColumn("{task.fields[facts]}"))
            self._bar = Bar(*columns, console=console, transient=True)
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
        left = timedelta(seconds=round(max(0, self.total - self._done) / rate)) if rate > 0 else "?"
        amount = f"{self._number(self._done)}/{self._number(self.total)}{self._unit}"
        return f"{amount}  {self._number(rate)}{self._unit}/s  {left} left"


class StepProgress:
    """Shows training steps. ``update`` is called every step and must cost next to nothing."""

    def __init__(self, name: str, total: int, done: int, *, every: float = 10.0) -> None:
        self.total = total
        self._console = Console(stderr=True, soft_wrap=True)
        live = self._console.is_terminal and sys.stderr.isatty()
        self._interval = 0.25 if live else every
        self._name = name
        self._next = 0.0
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), done)], maxlen=50)
        self._bar: Bar | None = None
        if live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Bar(*columns, console=self._console, auto_refresh=False)
            self._task = self._bar.add_task(name, total=total, completed=done, facts="")
            self._bar.start()

    @property
    def rate(self) -> float:
        """Steps a second over the last marks."""
        (t0, s0), (t1, s1) = self._marks[0], self._marks[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def update(self, step: int, facts: str) -> None:
        """Show ``step`` now; the caller asks ``due`` first."""
        now = time.monotonic()
        self._next = now + self._interval
        self._marks.append((now, step))
        left = timedelta(seconds=round((self.total - step) / self.rate)) if self.rate else "?"
        text = f"{facts}  {self.rate:.1f} steps/s  {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=text, refresh=True)
        else:
            print(f"{self._name}: step {step}/{self.total}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
