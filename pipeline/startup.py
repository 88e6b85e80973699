"""Where the time between a process's birth and its first step goes, by part. It is in the run's history: event ``first_step``."""

from __future__ import annotations

import time

import psutil


class StartUp:
    """Call ``mark`` when a part is over; the first part begins at ``since`` (Unix time), or when the process was born."""

    def __init__(self, since: float | None = None) -> None:
        self.parts: dict[str, float] = {}
        self._last = psutil.Process().create_time() if since is None else since

    def mark(self, part: str) -> None:
        now = time.time()
        self.parts[f"{part}_s"] = round(now - self._last, 3)
        self._last = now
