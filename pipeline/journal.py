"""Metrics as an append-only file, one per attempt, one writer each: the truth that MLflow is filled from.

    metrics/attempt_003.jsonl
      {"attempt": 3, "after_step": 1200, "time": 1763640000.0}
      {"step": 1210, "time": 1763640001.5, "metrics": {"train/loss": 1.93, "train/lr": 0.0003}}

A line leaves the process with one ``write``, so SIGKILL loses at most the step that was being written. An attempt that resumed
at step 1200 repeats what an earlier one had done beyond it: a reader drops an attempt's steps from where a later one began.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import read_lines


class Journal:
    """The writer of one attempt's metrics. A disk that takes no more ends nothing.

    ``trouble``: what is to be told, once when lines begin to be lost and once when that is over; whoever tells it sets it to None.
    """

    def __init__(self, path: Path, attempt: int, after_step: int) -> None:
        self.path = path
        self.trouble: str | None = None
        self._torn = False  # the disk was full in the middle of a line
        self._lost = 0  # lines since the disk took one
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._write({"attempt": attempt, "after_step": after_step, "time": time.time()})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        self._write({"step": step, "time": round(time.time(), 3), "metrics": values})

    def _write(self, tree: Any) -> None:
        line = json.dumps(tree).encode() + b"\n"
        rest = b"\n" + line if self._torn else line  # half a line must not swallow the next
        try:
            while rest:
                written = os.write(self._fd, rest)  # all of it, unless the disk fills up: then the second one says why
                rest = rest[written:]
                self._torn = bool(rest)
        except OSError as error:
            if not self._lost:
                self.trouble = f"{self.path}: {error.strerror}; metrics are lost from here on, training goes on"
            self._lost += 1
        else:
            if self._lost:
                self.trouble = f"{self.path} can be written to again; metrics of {self._lost} steps are lost"
            self._lost = 0

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True)
class Point:
    step: int
    time: float
    attempt: int
    metrics: dict[str, float]


def read_journals(folder: Path) -> Iterator[Point]:
    """All points of a run in order of step: what a later attempt repeated is dropped from the earlier one."""
    attempts = []
    for path in sorted(folder.glob("attempt_*.jsonl")):
        rows, _ = read_lines(path)
        if rows and "attempt" in rows[0]:
            attempts.append(rows)
    for i, (head, *rows) in enumerate(attempts):
        end = min((later[0]["after_step"] for later in attempts[i + 1 :]), default=math.inf)
        for row in rows:
            if row["step"] <= end:
                values = {name: float(value) for name, value in row["metrics"].items()}
                yield Point(row["step"], row["time"], head["attempt"], values)
