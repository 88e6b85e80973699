"""All benchmarks, one after the other, and one table of what they compare: ``make bench``.

    python -m benchmarks [NAME ...]

Every module of this folder that hands rows over (``benchmarks.rows``) is run in a process of its own, with its defaults; what it prints
goes to ``build/bench/NAME.log``. Without names all are run, and ``benchmarks/RESULTS.md`` is written anew. Exit 1 where one failed;
a figure that is not what is asked is shown as such and fails nothing, for the machine may be busy.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.rows import FOLDER, Row, handed_over
from pipeline.errors import UserError, run_command

HERE = Path(__file__).resolve().parent
LOGS = HERE.parent / "build" / "bench"
RESULTS = HERE / "RESULTS.md"
COLUMNS = ("what", "ours", "beside", "compared: median (least .. most)", "asked", "")
RUNS: dict[str, list[list[str]]] = {  # where one run with the defaults is not what is wanted
    "prepare": [
        [],
        ["--dataset", "slakh", "--recipe", "slakh_stems", "--tracks", "12", "--times", "8", "--inputs-per-shard", "1"],
    ],
}


@dataclass(frozen=True)
class Run:
    """What came of one benchmark. ``failure``: its last words, where it failed."""

    command: str
    seconds: float
    rows: list[Row]
    failure: str | None


def names() -> list[str]:
    """The benchmarks that hand rows over, by name."""
    paths = (path for path in sorted(HERE.glob("*.py")) if path.stem not in ("rows", "__main__"))
    return [path.stem for path in paths if re.search(r"^\s*hand_over\(", path.read_text(), re.MULTILINE)]


def run(name: str, options: list[str], log: Path) -> Run:
    """``python -m benchmarks.NAME``, its output to ``log``."""
    with tempfile.TemporaryDirectory(prefix="bench-rows-") as folder, log.open("w") as output:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *options],
            cwd=HERE.parent, env={**os.environ, FOLDER: folder}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        rows = handed_over(Path(folder))
    said = log.read_text(errors="replace").split("\n")
    failure = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    command = " ".join(["python -m", f"benchmarks.{name}", *options])
    return Run(command, time.monotonic() - began, rows, failure if done.returncode or not rows else None)


def cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "holds", False: "does not hold", None: ""}[row.holds]
    return row.what, row.ours, row.theirs, row.shown, row.asked, verdict


def show(runs: Iterable[Run]) -> None:
    table = Table(*COLUMNS, title=machine())
    for done in runs:
        for row in done.rows:
            style = "red" if row.holds is False else None
            table.add_row(*map(escape, cells(row)), style=style)
        if done.failure:
            table.add_row(escape(done.command), "", "", f"failed: {escape(done.failure)}", style="red")
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def markdown(runs: Iterable[Run]) -> str:
    """``RESULTS.md``."""
    lines = ["# Results", "", f"Written by `make bench` on {date.today()}. {machine()}.", ""]
    lines += ["Ratios compare what one turn measured, the contenders taking turns; below 1 ours takes less.", ""]
    for done in runs:
        lines += [f"## `{done.command}`", "", f"{done.seconds:.0f} s.", ""]
        if done.failure:
            lines += [f"Failed: {done.failure}", ""]
            continue
        lines += [_line(COLUMNS), _line("---" for _ in COLUMNS), *(_line(cells(row)) for row in done.rows), ""]
    return "\n".join(lines)


def _line(words: Iterable[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


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


def main() -> int:
    known = names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks, and one table.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(known)):
        raise UserError(f"There is no benchmark {unknown[0]}; there are: {', '.join(known)}.")
    LOGS.mkdir(parents=True, exist_ok=True)
    runs = []
    for name in args.names or known:
        for number, options in enumerate(RUNS.get(name, [[]])):
            log = LOGS / f"{name}{f'_{number + 1}' if number else ''}.log"
            done = run(name, options, log)
            runs.append(done)
            how = f"failed, see {log}" if done.failure else f"{len(done.rows)} rows"
            print(f"{done.command}: {how}, {done.seconds:.0f} s", file=sys.stderr, flush=True)
    show(runs)
    if not args.names:
        RESULTS.write_text(markdown(runs))
        print(RESULTS)
    return int(any(done.failure for done in runs))


if __name__ == "__main__":
    run_command(main)
