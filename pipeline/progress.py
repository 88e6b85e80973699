"""Progress for people: a live line with rate, loss and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


class StepProgress:
    """Shows training steps. ``update`` is called every step and must cost next to nothing."""

    def __init__(self, name: str, total: int, done: int, *, every: float = 10.0) -> None:
        self.total = total
        self._console = Console(stderr=True, soft_wrap=True)
        self._interval = 0.25 if self._console.is_terminal else every
        self._name = name
        self._next = 0.0
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), done)], maxlen=50)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Progress(*columns, console=self._console, auto_refresh=False)
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
