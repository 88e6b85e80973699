"""What sync says and asks: a live bar with rate and time left on a terminal, a plain line every few seconds elsewhere; yes or no."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.errors import UserError

PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


class Transfer:
    """``with Transfer("samples", total) as transfer: transfer.told(bytes of the present file)``."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self._before = self._present = 0  # bytes of the files that are through, and of the one that is not
        self._start = time.monotonic()
        self._next = self._start + PLAIN_INTERVAL
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Transfer:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def told(self, present: int) -> None:
        """So many bytes of the present file are through; fewer than the last time mean that another one began."""
        if present < self._present:
            self._before += self._present
        self._present = present
        done = self._before + present
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_INTERVAL
            rate = done / (time.monotonic() - self._start)
            left = timedelta(seconds=round(max(0, self.total - done) / rate)) if rate else "?"
            print(
                f"{self.what}: {decimal(done)} of {decimal(self.total)}  {decimal(round(rate))}/s  {left} left",
                file=sys.stderr,
                flush=True,
            )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def amount(files: int, size: int) -> str:
    """``1 file (3.2 kB)``."""
    return f"{files:,} {'file' if files == 1 else 'files'} ({decimal(size)})"


def confirmed(question: str) -> bool:
    """The answer of whoever sits at the terminal; UserError where nobody does."""
    if not sys.stdin.isatty():
        raise UserError("--delete asks, and there is no terminal to ask at; --yes answers.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
