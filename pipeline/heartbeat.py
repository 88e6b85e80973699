"""The sign of life of a rank, given by a thread, so that a long save or validation is not taken for a death."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HEARTBEAT_SECONDS = 2.0


class Heartbeat:
    """Calls ``write`` every two seconds; a disk that takes no more is told once and ends nothing."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._told = False
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat within the block."""
        ended = threading.Event()
        thread = threading.Thread(target=self._until, args=(ended,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def beat(self) -> None:
        with self._one_at_a_time:
            try:
                self._write()
            except OSError as error:
                if not self._told:
                    self._told = True
                    lost = f"{error.filename} cannot be written ({error.strerror}); training goes on"
                    print(f"warning: {lost}", file=sys.stderr, flush=True)

    def _until(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            self.beat()
