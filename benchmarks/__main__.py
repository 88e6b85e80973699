"""All benchmarks, one after the other, and one table of what they compare: ``make bench``, about 10 minutes on two quiet cores.

    python -m benchmarks [NAME ...]

Every module of this folder that hands rows over (``benchmarks.rows``) is run in a process of its own, with its defaults; what it prints
goes to ``build/bench/NAME.log``. Without names all are run. ``benchmarks/RESULTS.md`` is written anew from what the last run of each left
(``benchmarks.results``), the full-size networks' table included where ``python -m benchmarks.systems --full`` has made it. Exit 1 where
one failed; a figure that is not what is asked is shown as such and fails nothing, for the machine may be busy.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import results
from benchmarks.results import COLUMNS, HERE, LOGS, Run, cells, machine
from benchmarks.rows import FOLDER, handed_over
from pipeline.errors import UserError, run_command

FULL_SIZE = "systems_full"  # what ``python -m benchmarks.systems --full`` leaves
RUNS: dict[str, list[list[str]]] = {  # where one run with the defaults is not what is wanted
    "prepare": [
        [],
        ["--dataset", "slakh", "--recipe", "slakh_stems", "--tracks", "12", "--times", "3", "--inputs-per-shard", "1"],
    ],
}


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
        rows, grids = handed_over(Path(folder))
    said = log.read_text(errors="replace").split("\n")
    failure = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    command = " ".join(["python -m", f"benchmarks.{name}", *options])
    return Run(command, time.monotonic() - began, rows, failure if done.returncode or not rows else None, grids)


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


def main() -> int:
    known = names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks, and one table.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(known)):
        raise UserError(f"There is no benchmark {unknown[0]}; there are: {', '.join(known)}.")
    LOGS.mkdir(parents=True, exist_ok=True)
    runs = []
    wanted = args.names or known
    for name, options in [(one, words) for one in wanted for words in RUNS.get(one, [[]])]:
        log = LOGS / f"{label(name, options)}.log"
        done = run(name, options, log)
        results.keep(log.stem, done)
        runs.append(done)
        how = f"failed, see {log}" if done.failure else f"{len(done.rows)} rows"
        print(f"{done.command}: {how}, {done.seconds:.0f} s", file=sys.stderr, flush=True)
    show(runs)
    print(write_results())
    return int(any(done.failure for done in runs))


def label(name: str, options: list[str]) -> str:
    """What one run's files are called: the second of a benchmark's runs bears a number."""
    number = RUNS.get(name, [[]]).index(options)
    return f"{name}_{number + 1}" if number else name


def write_results() -> Path:
    """``RESULTS.md``, of all that is kept."""
    labels = [label(name, options) for name in names() for options in RUNS.get(name, [[]])]
    return results.write([*labels, FULL_SIZE])


if __name__ == "__main__":
    run_command(main)
