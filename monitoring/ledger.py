"""Where a run's GPU-hours went: waiting in the queue, starting, useful, saving, and lost to what had to be done again.

Useful is what the run's present state stands on: steps that a later attempt did again are lost, and so are, where nothing went on, those
after the last checkpoint of an attempt that did not end by agreement. One process holds one GPU (on a machine without: a CPU process).
"""

from __future__ import annotations

import math
import pwd
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from monitoring.attempts import Attempt, events, read_attempts
from pipeline.files import read_lines
from pipeline.runs import RunFolder

KINDS = ("queued", "starting", "useful", "saving", "lost")
AGREED = ("complete", "warned", "terminated", "interrupted")  # ends before which everything was saved
SAVE, ENERGY = "time/save_s", "gpu/energy_kwh"


@dataclass(frozen=True)
class Span:
    """Seconds since the epoch during which ``gpus`` were held for one ``kind`` of thing; queued ones were only waited for."""

    kind: str
    begin: float
    end: float
    gpus: int

    def hours(self, begin: float = -math.inf, end: float = math.inf) -> float:
        """GPU-hours of it between two moments."""
        return max(0.0, min(self.end, end) - max(self.begin, begin)) * self.gpus / 3600


@dataclass
class Account:
    """GPU-hours by kind, and the GPUs' energy in kWh as far as they told it: not a node's CPUs, fans and network."""

    hours: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    energy: float = 0.0

    @property
    def held(self) -> float:
        """All but the waiting."""
        return sum(self.hours.values()) - self.hours["queued"]

    def add(self, spans: Iterable[Span], begin: float = -math.inf, end: float = math.inf) -> None:
        for span in spans:
            self.hours[span.kind] += span.hours(begin, end)


@dataclass(frozen=True)
class Owned:
    """One run's account, and whose it is."""

    run: str
    user: str
    system: str
    account: Account


def spans_of(run: RunFolder, history: Sequence[dict[str, Any]], now: float | None = None) -> list[Span]:
    """Everything that a run's attempts did with their time."""
    attempts = read_attempts(history)
    alive = run.writer() is not None
    found: list[Span] = []
    for i, attempt in enumerate(attempts):
        journal = _journal(run, attempt.number)
        again = min((later.after_step for later in attempts[i + 1 :]), default=None)
        running = alive and i == len(attempts) - 1
        heard = max([attempt.first_step or attempt.began, *(at for _, at, _ in journal)])
        end = attempt.ended or ((time.time() if now is None else now) if running else heard)
        found += _of_attempt(attempt, journal, again, end, running)
    return found


def _of_attempt(
    attempt: Attempt, journal: list[tuple[int, float, float]], again: int | None, end: float, running: bool
) -> Iterator[Span]:
    gpus = attempt.world_size
    if attempt.queued is not None and attempt.queued < attempt.born:
        yield Span("queued", attempt.queued, attempt.born, gpus)
    first = min(attempt.first_step or attempt.began, end)
    yield Span("starting", attempt.born, first, gpus)
    kept = max(first, min(_kept_until(attempt, journal, again, end, running), end))
    saves = [Span("saving", max(first, at - took), at, gpus) for _, at, took in journal if took and first < at <= kept]
    yield from saves
    at = first
    for save in saves:  # what lies between them is training
        yield Span("useful", at, max(at, save.begin), gpus)
        at = save.end
    yield Span("useful", at, max(at, kept), gpus)
    yield Span("lost", kept, end, gpus)


def _kept_until(
    attempt: Attempt, journal: list[tuple[int, float, float]], again: int | None, end: float, running: bool
) -> float:
    """The moment up to which an attempt's work stands."""
    if again is None and (running or attempt.how in AGREED):
        return end
    if again is None:  # nothing went on from it yet: what is saved stands
        return max((at for _, at, took in journal if took), default=-math.inf)
    if again <= attempt.after_step:
        return -math.inf
    return max((at for step, at, _ in journal if step <= again), default=-math.inf)


def _journal(run: RunFolder, number: int) -> list[tuple[int, float, float]]:
    """(step, time, seconds of a save or 0) of an attempt's journal, in its order."""
    return [(step, at, float(metrics.get(SAVE, 0.0))) for step, at, metrics in _rows(run.journal_file(number))]


def _rows(journal: Path) -> list[tuple[int, float, dict[str, Any]]]:
    """(step, time, metrics) of a journal's lines, without its head."""
    rows, _ = read_lines(journal)
    return [
        (int(row["step"]), float(row["time"]), row["metrics"])
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("metrics"), dict)
    ]


def energy_of(run: RunFolder, begin: float = -math.inf, end: float = math.inf) -> float:
    """kWh of a run's GPUs between two moments. Each attempt counts from its own beginning, in its journal."""
    used = 0.0
    for journal in sorted(run.metrics.glob("attempt_*.jsonl")):
        told = [(at, float(row[ENERGY])) for _, at, row in _rows(journal) if ENERGY in row]
        until = [kwh for at, kwh in told if at <= end]
        before = [kwh for at, kwh in told if at <= begin]
        used += max(until, default=0.0) - max(before, default=0.0)
    return used


# -- of a month ---------------------------------------------------------------------------------------------------


def month_of(text: str) -> tuple[float, float]:
    """Begin and end of ``2026-11`` in this machine's time; ValueError where it is none."""
    begin = datetime.strptime(text, "%Y-%m")
    after = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
    return begin.timestamp(), after.timestamp()


def ledger(runs: Iterable[RunFolder], begin: float, end: float) -> list[Owned]:
    """The accounts of all runs that did or waited for anything between two moments, the dearest first."""
    found = []
    for run in runs:
        history = events(read_lines(run.history_file)[0])
        if not history or history[0]["time"] > end:
            continue
        account = Account()
        account.add(spans_of(run, history), begin, end)
        account.energy = energy_of(run, begin, end)
        if any(account.hours.values()):
            found.append(Owned(run.name, _owner(run), _system(run, history), account))
    return sorted(found, key=lambda owned: -owned.account.held)


def totals(owned: Iterable[Owned], by: str) -> dict[str, Account]:
    """Accounts added up by ``user`` or ``system``."""
    found: dict[str, Account] = {}
    for one in owned:
        account = found.setdefault(getattr(one, by), Account())
        for kind, hours in one.account.hours.items():
            account.hours[kind] += hours
        account.energy += one.account.energy
    return found


def _owner(run: RunFolder) -> str:
    uid = run.path.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _system(run: RunFolder, history: Sequence[dict[str, Any]]) -> str:
    config = history[0].get("config") or {}
    return str((config.get("model") or {}).get("system") or run.path.parent.name.partition("_")[0])
