"""What raters chose between the two light shows of a pair: one append-only file a rater, people and the scripted judge alike.

    RUN/choices/anna.jsonl
      {"pair": "000017", "choice": "a", "rater": "anna", "time": "2026-11-20T21:14:03.218+00:00", "seconds": 14.2}

The pairs themselves are a dataset in RUN/pairs/ (``shards``, ``manifest``); ``pair`` is a sample's key there. Of a rater's
lines for a pair the last one counts, and ``undo`` takes the choice back. Nothing is ever rewritten: what a kill can do is tear
the last line, which is left out and said; the next one begins on a line of its own.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import append_line, fsync_folder, read_lines

PAIRS, CHOICES = "pairs", "choices"  # folders of a run
VERDICTS = ("a", "b", "tie", "skip")
UNDO = "undo"
SCRIPTED_JUDGE = "scripted_judge"  # the rater that is a program
RATER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # becomes a file name, also where file systems know no upper case


@dataclass(frozen=True)
class Choice:
    """One line: ``choice`` is one of VERDICTS or UNDO, ``time`` ISO 8601 in UTC, ``seconds`` what the rater took for it."""

    pair: str
    choice: str
    rater: str
    time: str
    seconds: float


def check_rater(name: str) -> str:
    """``name`` where it may name a rater and their file; UserError says what may."""
    if not RATER.fullmatch(name):
        raise UserError(
            f"'{name}' cannot name a rater: take 1 to 40 of a-z, 0-9, _ and -, with a letter or digit first; for example: anna."
        )
    return name


def choices_file(run: Path, rater: str) -> Path:
    """Where the choices of ``rater`` stand; UserError where that is no name."""
    return run / CHOICES / f"{check_rater(rater)}.jsonl"


def append_choice(run: Path, rater: str, pair: str, choice: str, seconds: float, *, durable: bool = True) -> Choice:
    """Write one choice down; with ``durable`` it is on the disk when this returns.

    ValueError for what ``read_choices`` would not take; UserError for a rater's name; OSError where the line could not be written whole.
    """
    path = choices_file(run, rater)
    line = Choice(pair, choice, rater, datetime.now(UTC).isoformat(timespec="milliseconds"), seconds)
    if _parsed(asdict(line), rater) is None:
        raise ValueError(f"no choice: {line}; choices are {', '.join(VERDICTS)} and {UNDO}, seconds are at least 0")
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, asdict(line), durable=durable)
    if is_new and durable:
        fsync_folder(path.parent)
        fsync_folder(run)
    return line


def read_choices(run: Path) -> tuple[list[Choice], list[str]]:
    """What counts of all raters (never an UNDO), rater after rater by name, and a sentence for each file that holds anything else."""
    counting: list[Choice] = []
    trouble: list[str] = []
    for path in sorted((run / CHOICES).glob("*.jsonl")):
        if not RATER.fullmatch(path.stem):
            trouble.append(f"{path} is left out: its name is no rater's.")
            continue
        own, said = read_rater(run, path.stem)
        counting += own
        trouble += said
    return counting, trouble


def read_rater(run: Path, rater: str) -> tuple[list[Choice], list[str]]:
    """What counts of one rater, in the order in which it was chosen, and a sentence where lines were left out."""
    path = choices_file(run, rater)
    rows, broken = read_lines(path)
    lines = [_parsed(row, rater) for row in rows]
    broken += lines.count(None)
    last: dict[str, Choice] = {}
    for line in filter(None, lines):
        last.pop(line.pair, None)
        if line.choice != UNDO:
            last[line.pair] = line
    said = f"{path}: {broken} line{'s' if broken > 1 else ''} left out (torn by a kill, or no choice of {rater}'s)."
    return list(last.values()), [said] if broken else []


def _parsed(row: Any, rater: str) -> Choice | None:
    """The line as a Choice; None where it is none of that rater's."""
    match row:
        case {
            "pair": str(pair),
            "choice": str(choice),
            "rater": str(whose),
            "time": str(time),
            "seconds": int(seconds) | float(seconds),
        } if pair and choice in (*VERDICTS, UNDO) and whose == rater and 0 <= seconds < math.inf:
            return Choice(pair, choice, whose, time, float(seconds))
    return None
