"""Rank 0's words on the terminal, and in its log as every other rank's: ``monitoring/logs.py`` and ``why.py`` read them there later.

What rank 0 writes comes through a pipe and goes to both. It still draws its live progress line where a terminal is at the end of the
pipe; the log gets whole lines without it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import BinaryIO

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and what moves a terminal's cursor
LEFT = 1.0  # seconds for what a rank's own children still say when it has gone


class Speaker:
    """Reads what rank 0 writes into ``end`` and says it again on our stderr and in ``log``."""

    def __init__(self, log: Path) -> None:
        self._log: BinaryIO | None = log.open("wb", buffering=0)
        ours, self.end = os.pipe()
        self._source = os.fdopen(ours, "rb", buffering=0)
        self._line = b""
        self._heard = True
        self._thread = threading.Thread(target=self._listen, name="rank 0", daemon=True)

    def started(self) -> None:
        """Rank 0 has its end of the pipe; ours would keep it open."""
        os.close(self.end)
        self._thread.start()

    def finish(self) -> None:
        self._thread.join(LEFT)

    def _listen(self) -> None:
        """To the end of the pipe, whatever becomes of the terminal: a pipe that nobody empties would stop the training."""
        while block := self._source.read(1 << 16):
            self._say(block)
            self._keep(block)
        self._keep(b"\n" if self._line else b"")

    def _say(self, block: bytes) -> None:
        if not self._heard:
            return
        try:
            sys.stderr.buffer.write(block)
            sys.stderr.flush()
        except OSError:  # nobody is there any more: the log goes on
            self._heard = False

    def _keep(self, block: bytes) -> None:
        """Append whole lines; of one that was drawn over again and again, what stood there last."""
        *whole, rest = (self._line + block).split(b"\n")
        self._line = rest[rest.rfind(b"\r") + 1 :]
        lines = (CONTROL.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2]).rstrip() for line in whole)
        text = b"".join(line + b"\n" for line in lines)
        if self._log is None or not text:
            return
        try:
            self._log.write(text)
        except OSError as error:  # the terminal still has it, and so has whoever looks at it
            self._log = None
            print(f"warning: rank 0's log cannot be written ({error.strerror})", file=sys.stderr, flush=True)


def as_terminal() -> dict[str, str]:
    """What lets rank 0 draw on our terminal through a pipe; empty where there is none."""
    if not sys.stderr.isatty():
        return {}
    return {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
