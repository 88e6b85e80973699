"""What sync says and asks: how far a transfer is, sentences, yes or no. Loads what draws only where something is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import UserError


@contextmanager
def transfer(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Within the block progress is shown; tell it the bytes of the present file so far: fewer than before is another file."""
    from rich.filesize import decimal

    from pipeline.progress import Progress

    before = present = 0  # bytes of the files that are through, and of the one that is not
    with Progress(what, "", total, number=lambda size: decimal(round(size))) as progress:

        def told(size: int) -> None:
            nonlocal before, present
            before, present = before + (present if size < present else 0), size
            progress.update(before + present)

        yield told


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def amount(files: int, size: int) -> str:
    """``1 file (3.2 kB)``."""
    from rich.filesize import decimal

    return f"{files:,} {'file' if files == 1 else 'files'} ({decimal(size)})"


def confirmed(question: str) -> bool:
    """The answer of whoever sits at the terminal; UserError where nobody does."""
    if not sys.stdin.isatty():
        raise UserError("--delete asks, and there is no terminal to ask at; --yes answers.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
