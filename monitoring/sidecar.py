"""A process beside the training that can do anything but disturb it: hang, fail, be killed, or never start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def beside(words: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Within the block ``python -m WORDS`` runs; it is to end when its stdin is closed. Never raises, never waits."""
    process = None
    try:
        with log.open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,  # closes when the training is gone, whatever took it
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
    except OSError as error:
        print(f"{words[0]} does not run beside the training: {error}; the training goes on.", file=sys.stderr)
    try:
        yield
    finally:
        if process and process.stdin:
            with suppress(OSError):
                process.stdin.close()


def stand_back() -> None:
    """As such a process: run where nobody else wants to. The scheduler's signals are for the training."""
    os.nice(19)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
