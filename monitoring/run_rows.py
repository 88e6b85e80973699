"""A run's points as the rows of MLflow's metrics table; read again, only what was appended is parsed.

A journal that was replaced by a longer one (as a pull does) is recognised by the hash of the bytes that were read already. What a
later attempt repeated is dropped from the earlier one, as in ``pipeline.journal.read_journals``. What a node was taken for
(``monitoring.system``) stays, repeated or not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from pipeline.files import read_json
from pipeline.runs import RunFolder

Row = tuple[str, int, int, float, int]  # metric, time in ms, step, value, is NaN: the order of MLflow's primary key

NAME_LENGTH = 250  # MLflow's own limit
LARGEST = 1.7976931348623157e308  # what MLflow stores for infinity
STRANGE = re.compile(r"[^\w\-. /:]")  # what MLflow does not take in a metric's or parameter's name


@dataclass(frozen=True)
class Change:
    """What came and what went since the last reading."""

    new: set[Row]
    gone: set[Row]


@dataclass
class JournalFile:
    """One attempt's journal as far as it was read. ``tail``: rows of a last line that has no end yet, and may get another one."""

    path: Path
    head: Mapping[str, Any] | None = None
    rows: list[Row] = field(default_factory=list)
    tail: list[Row] = field(default_factory=list)
    broken: int = 0
    broken_tail: int = 0
    _read: int = 0
    _hash: Any = field(default_factory=xxhash.xxh3_128)

    def read_on(self, names: dict[str, str]) -> list[Row] | None:
        """Rows of the lines that were appended since; None where the file is another one and was read from its beginning."""
        with self.path.open("rb") as file:
            same = xxhash.xxh3_128(file.read(self._read)).digest() == self._hash.digest()
            if not same:
                self.head, self.rows, self.broken, self._read, self._hash = None, [], 0, 0, xxhash.xxh3_128()
                file.seek(0)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        self._hash.update(whole)
        fresh, broken = self._parse(whole, names)
        self.tail, self.broken_tail = self._parse(new[len(whole) :], names)
        self.broken += broken
        self.rows += fresh
        return fresh if same else None

    def _parse(self, raw: bytes, names: dict[str, str]) -> tuple[list[Row], int]:
        rows: list[Row] = []
        broken = 0
        for line in raw.split(b"\n"):
            if not line.strip():
                continue
            try:
                tree = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                broken += 1
                continue
            if self.head is None:
                self.head = tree
            elif "attempt" in self.head:
                at, step = milliseconds(tree["time"]), tree["step"] + 0
                for name, value in tree["metrics"].items():
                    key = names.get(name) or names.setdefault(name, name_of(name))
                    rows.append((key, at, step, *stored(float(value))))
        return rows, broken


class RunRows:
    """All rows of one run: its journals' and its evaluation's."""

    def __init__(self, run: RunFolder) -> None:
        self.rows: set[Row] = set()
        self.broken = 0
        self._run = run
        self._names: dict[str, str] = {}
        self._files: dict[Path, JournalFile] = {}
        self._ends: dict[Path, float] = {}  # of each attempt: the step at which a later one began
        self._tails: set[Row] = set()
        self._evaluation: set[Row] = set()

    def read(self) -> Change:
        """Read what is new; ``rows`` are all rows then."""
        paths = journals(self._run)
        self._files = {path: self._files.get(path) or JournalFile(path) for path in paths}
        added = {file.path: file.read_on(self._names) for file in self._files.values()}
        self.broken = sum(file.broken + file.broken_tail for file in self._files.values())
        files = [file for file in self._files.values() if file.head is not None and "attempt" in file.head]
        attempts = [file for file in files if file.path.name.startswith("attempt")]
        ends = dict.fromkeys((file.path for file in files), math.inf)
        ends |= {file.path: _end(attempts[i + 1 :]) for i, file in enumerate(attempts)}
        tails = {row for file in files for row in file.tail if row[2] <= ends[file.path]}
        evaluation = evaluation_rows(self._run)
        fresh = {row for path, end in ends.items() for row in added[path] or () if row[2] <= end}
        if ends != self._ends or None in added.values() or self._tails - tails - fresh:
            change = self._rebuild(files, ends, tails | evaluation)
        else:
            change = self._add(fresh | tails | evaluation, self._evaluation - evaluation)
        self._ends, self._tails, self._evaluation = ends, tails, evaluation
        return change

    def _rebuild(self, files: list[JournalFile], ends: dict[Path, float], others: set[Row]) -> Change:
        before = self.rows
        self.rows = {row for file in files for row in file.rows if row[2] <= ends[file.path]} | others
        return Change(self.rows - before, before - self.rows)

    def _add(self, wanted: set[Row], unwanted: set[Row]) -> Change:
        new, gone = wanted - self.rows, unwanted - wanted
        self.rows |= new
        self.rows -= gone
        return Change(new, gone)


def journals(run: RunFolder) -> list[Path]:
    """What training wrote, an attempt each, and what was measured beside it."""
    return sorted([*run.metrics.glob("attempt_*.jsonl"), *run.metrics.glob("system_*.jsonl")])


def _end(later: list[JournalFile]) -> float:
    return min((file.head["after_step"] for file in later if file.head is not None), default=math.inf)


def evaluation_rows(run: RunFolder) -> set[Row]:
    """evaluation.json as metrics: ``evaluation/<figure>``, an interval's ends as ``..._low`` and ``..._high``."""
    tree = read_json(run.evaluation_file)
    if not isinstance(tree, dict):
        return set()
    at = milliseconds(run.evaluation_file.stat().st_mtime)
    return {
        (name_of(f"evaluation/{name}"), at, int(tree.get("step", 0)), *stored(float(value)))
        for name, value in figures(tree.get("figures", {}))
    }


def figures(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among an evaluation's figures, nested ones under ``a/b``; ``{"value", "low", "high"}`` is one with its interval."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            interval = {"": value.get("value"), "_low": value.get("low"), "_high": value.get("high")}
            nested = {f"{path}{end}": number for end, number in interval.items()} if "value" in value else None
            yield from figures(nested) if nested else figures(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


def name_of(name: str) -> str:
    """A name that MLflow's pages and its API take."""
    return STRANGE.sub("_", name)[:NAME_LENGTH]


def stored(value: float) -> tuple[float, int]:
    """A value and its NaN mark, as MLflow stores them."""
    if math.isnan(value):
        return 0.0, 1
    return min(max(value, -LARGEST), LARGEST), 0


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
