"""The sign of life of the attempt that writes, given by a thread, so that a long save or validation is not taken for a death."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.runs import RunFolder

HEARTBEAT_SECONDS = 2.0


class Heartbeat:
    """Replaces ``heartbeat.json`` with what ``facts`` gives; a disk that takes no more is told once and ends nothing."""

    def __init__(self, run: RunFolder, facts: Callable[[], dict[str, Any]]) -> None:
        self._run, self._facts = run, facts
        self._told = False
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat within the block, every two seconds."""
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
                self._run.beat(**self._facts())
            except OSError as error:
                if not self._told:
                    self._told = True
                    lost = f"{self._run.heartbeat_file} cannot be written ({error.strerror}); training goes on"
                    print(f"warning: {lost}", file=sys.stderr, flush=True)

    def _until(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            self.beat()
