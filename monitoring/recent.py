"""The end of a run's newest journal, and its best validation: what a screen shows of a run, without reading all that it ever wrote."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TAIL = 1 << 16  # bytes of the newest journal that are read
HOUR = 3600.0
USUAL = 20  # rates that are the present one and those just before it; what came earlier is the past
LOSS, RATE, WAIT, MFU, VALID = "train/loss", "time/steps_per_s", "time/data_wait", "time/mfu", "valid/loss"
PEAK = "memory/peak_gib"


@dataclass(frozen=True)
class Recent:
    """``points``: (step, time, metrics) in order, values as the journal holds them (NaN is a word there)."""

    points: list[tuple[int, float, dict[str, Any]]] = field(default_factory=list)

    def series(self, name: str) -> list[tuple[float, float]]:
        """(time, value) of one metric."""
        return [(at, float(values[name])) for _, at, values in self.points if name in values]

    @property
    def last(self) -> tuple[int, float] | None:
        """Step and time of the newest line."""
        return (self.points[-1][0], self.points[-1][1]) if self.points else None

    @property
    def loss(self) -> float | None:
        losses = self.series(LOSS)
        return losses[-1][1] if losses else None

    def loss_change(self) -> tuple[float, float] | None:
        """(relative change of the loss, over how many seconds): over the last hour, or as much of it as there is.

        Both ends are means of up to five values, for one value is noise.
        """
        losses = [(at, loss) for at, loss in self.series(LOSS) if math.isfinite(loss)]
        if len(losses) < 4:
            return None
        window = [row for row in losses if row[0] >= losses[-1][0] - HOUR]
        size = min(5, len(window) // 2)
        if size == 0:
            return None
        before, now = (statistics.fmean(v for _, v in part) for part in (window[:size], window[-size:]))
        return ((now - before) / abs(before), window[-1][0] - window[0][0]) if before else None

    def rate(self) -> tuple[float, float | None] | None:
        """(steps a second now, the same relative to this attempt's own past); the past is None where there is too little of it."""
        rates = [rate for _, rate in self.series(RATE)]
        if not rates:
            return None
        now = statistics.median(rates[-3:])
        past = rates[1:-3][-5 * USUAL :]  # the first one pays for the warm-up
        usual = statistics.median(past) if len(past) >= USUAL // 2 else 0.0
        return now, now / usual - 1 if usual else None

    def data_wait(self) -> float | None:
        """Share of the time that goes into waiting for data, lately; None where nothing has been logged."""
        return self._lately(WAIT)

    def mfu(self) -> float | None:
        """Share of the device's peak arithmetic, lately; None where it was not counted."""
        return self._lately(MFU)

    def peak_memory(self) -> float | None:
        """GiB that a rank has held at most in this attempt, the largest over ranks; None where nothing has been logged."""
        values = self.series(PEAK)
        return values[-1][1] if values else None

    def _lately(self, name: str) -> float | None:
        values = [value for _, value in self.series(name)][-5:]
        return statistics.median(values) if values else None

    def patience(self) -> float:
        """Seconds between two lines after which a run that trains is to be called silent."""
        times = [at for _, at, _ in self.points]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        return max(300.0, 10 * statistics.median(gaps)) if gaps else 900.0


def read_recent(metrics: Path) -> Recent:
    """The last 64 KiB of the newest journal in ``metrics``; lines that are no points are left out."""
    journals = sorted(metrics.glob("attempt_*.jsonl"))
    if not journals:
        return Recent()
    with journals[-1].open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        lines = file.read().split(b"\n")
    return Recent([point for line in lines[size > TAIL :] if (point := _point(line)) is not None])


def _point(line: bytes) -> tuple[int, float, dict[str, Any]] | None:
    try:
        row = json.loads(line)
        return int(row["step"]), float(row["time"]), dict(row["metrics"])
    except (ValueError, KeyError, TypeError):  # torn, or a journal's first line
        return None


@dataclass
class BestValidation:
    """The lowest validation loss of a run, kept up to date by reading only what a journal has grown by."""

    loss: float | None = None
    step: int | None = None
    read: dict[str, int] = field(default_factory=dict)  # bytes, by journal

    def update(self, metrics: Path) -> None:
        for journal in sorted(metrics.glob("attempt_*.jsonl")):
            for step, loss in self._new(journal):
                if math.isfinite(loss) and (self.loss is None or loss < self.loss):
                    self.loss, self.step = loss, step

    def _new(self, journal: Path) -> Iterator[tuple[int, float]]:
        """Validations in the whole lines that came since; a journal that has shrunk is read anew."""
        start, size = self.read.get(journal.name, 0), journal.stat().st_size
        if size == start:
            return
        with journal.open("rb") as file:
            file.seek(start if size > start else 0)
            block = file.read()
        whole = block[: block.rfind(b"\n") + 1]
        self.read[journal.name] = (start if size > start else 0) + len(whole)
        for line in whole.split(b"\n"):
            if VALID.encode() in line and (point := _point(line)) is not None:
                yield point[0], float(point[2][VALID])
