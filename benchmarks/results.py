"""What came of each benchmark, kept in ``build/bench/NAME.json``, and the page that is made of it: ``benchmarks/RESULTS.md``."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rows import Grid, Row
from pipeline.files import read_json, write_json

HERE = Path(__file__).resolve().parent
LOGS = HERE.parent / "build" / "bench"
RESULTS = HERE / "RESULTS.md"
COLUMNS = ("what", "ours", "beside", "compared: median (least .. most)", "asked", "")


def machine() -> str:
    """Processor, cores, memory, Python and torch, in words."""
    memory = psutil.virtual_memory().total / 2**30
    parts = [f"{_processor()}, {psutil.cpu_count()} cores, {memory:.0f} GiB", f"Python {platform.python_version()}"]
    return ", ".join([*parts, f"torch {version('torch')}"])


def _processor() -> str:
    """Its model as Linux tells it, elsewhere its kind."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", told.read_text(), re.MULTILINE) if told.exists() else None
    return found[1] if found else platform.machine()


@dataclass(frozen=True)
class Run:
    """What came of one benchmark. ``failure``: its last words, where it failed."""

    command: str
    seconds: float
    rows: Sequence[Row]
    failure: str | None = None
    grids: Sequence[Grid] = ()
    day: str = field(default_factory=lambda: str(date.today()))
    machine: str = field(default_factory=machine)


def keep(name: str, run: Run) -> None:
    """For ``kept``; what was there under ``name`` is replaced."""
    LOGS.mkdir(parents=True, exist_ok=True)
    write_json(LOGS / f"{name}.json", asdict(run))


def kept(names: Iterable[str]) -> list[Run]:
    """Of those that were run on this machine."""
    return [_read(path) for name in names if (path := LOGS / f"{name}.json").exists()]


def _read(path: Path) -> Run:
    tree: dict[str, Any] = read_json(path)
    rows, grids = [Row(**row) for row in tree["rows"]], [Grid(**grid) for grid in tree["grids"]]
    return Run(**tree | {"rows": rows, "grids": grids})


def cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "holds", False: "does not hold", None: ""}[row.holds]
    return row.what, row.ours, row.theirs, row.shown, row.asked, verdict


def markdown(runs: Sequence[Run]) -> str:
    """``RESULTS.md``. Last words of one that failed stay in its log: they may hold paths."""
    lines = ["# Results", "", f"Written by `make bench`. {machine()}.", ""]
    lines += ["Ratios compare what one turn measured, the contenders taking turns; below 1 ours takes less.", ""]
    for run in runs:
        where = "" if run.machine == machine() else f" On {run.machine}."
        lines += [f"## `{run.command}`", "", f"{run.day}, {run.seconds:.0f} s.{where}", ""]
        if run.failure:
            lines += ["Failed; its log in `build/bench/` says why.", ""]
        if run.rows:
            lines += [*_table(COLUMNS, map(cells, run.rows)), ""]
        for grid in run.grids:
            lines += [f"{grid.title}:", "", *_table(grid.columns, grid.rows), ""]
    return "\n".join(lines)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    return [_line(columns), _line("---" for _ in columns), *map(_line, rows)]


def _line(words: Iterable[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def write(names: Iterable[str]) -> Path:
    """The page anew, of what is kept under ``names``."""
    RESULTS.write_text(markdown(kept(names)))
    return RESULTS
