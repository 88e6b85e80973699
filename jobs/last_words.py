"""What a rank that fails says last, in the run's history: which rank, on which node, when, and of what.

Logs may be of another host's clock, full, or only on a terminal; the history is where ``monitoring/why.py`` looks first.
"""

from __future__ import annotations

import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.runs import RunFolder

LONGEST = 2000  # characters of a message


@contextmanager
def last_words(run: RunFolder, rank: int, node: str) -> Iterator[None]:
    """Within the block an exception is written down (event ``rank_failed``, its traceback under logs/) before it goes on."""
    try:
        yield
    except Exception as error:
        told = {"error": type(error).__name__, "message": str(error)[:LONGEST]}
        run.note("rank_failed", rank=rank, node=node, **told)
        _keep_traceback(run, rank, error)
        raise


def note_ended(run: RunFolder, rank: int, code: int) -> None:
    """Write down that ``rank``, a process of this host, ended with ``code``, a signal's number negated (event ``rank_ended``)."""
    killed = {"signal": signal.Signals(-code).name} if code < 0 else {}
    run.note("rank_ended", rank=rank, node=socket.gethostname(), exit_code=code, **killed)


def _keep_traceback(run: RunFolder, rank: int, error: Exception) -> None:
    path = run.logs / f"failed_rank{rank}.txt"
    try:
        path.write_text("".join(traceback.format_exception(error)))
    except OSError as full:
        print(f"warning: {path}: {full.strerror}", file=sys.stderr)
