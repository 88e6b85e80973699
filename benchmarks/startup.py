"""From the birth of a training process to its first step, by part, beside what importing Lightning alone takes.

    python -m benchmarks.startup [--repeats 3]

The demo's run (one process, a corpus of a few tracks made for this), launched anew each turn; the parts are those of the run's history,
event ``first_step``. Beside it, in turns: an interpreter that imports torch and Lightning, as a script with its Trainer begins.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.launch import seconds
from benchmarks.rows import Row, amount, hand_over, ratios
from pipeline.runs import RunFolder

RECIPE = "cocochorales_simple_demo"


def prepare(folder: Path) -> None:
    """A few tracks in ``folder/data``."""
    source, out = folder / "raw", folder / "data"
    for line in (
        ["demo.py", "cocochorales", "--out", source, "--tracks", "8"],
        ["prepare.py", "cocochorales", "--source", source, "--recipe", RECIPE, "--out", out],
    ):
        command = [sys.executable, f"data_prep/{line[0]}", *map(str, line[1:])]
        seconds(command, None)


def start(folder: Path, turn: int) -> dict[str, float]:
    """Seconds by part of one run of two steps."""
    runs = folder / f"runs_{turn}"
    where = ["--data", str(folder / "data"), "--runs", str(runs), "--cluster", "local", "--gpus", "1", "--no-preflight"]
    settings = ["--set", "trainer.max_steps=2"]
    line = [sys.executable, "jobs/launch.py", "dismix_demo", *where, *settings]
    seconds(line, None)
    (path,) = (runs / "dismix_demo").iterdir()
    event = next(e for e in RunFolder(path).history() if e["event"] == "first_step")
    return {name.removesuffix("_s"): value for name, value in event.items() if name.endswith("_s")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    found: list[dict[str, float]] = []
    imports: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as text:
        prepare(Path(text))
        for turn in range(args.repeats + 1):
            parts, beside = start(Path(text), turn), seconds([sys.executable, "-c", "import torch, lightning"], None)
            if turn:  # the first one warms the page cache
                found.append(parts)
                imports.append(beside)
    table = Table("part", "seconds, median (least .. most)", title=f"{args.repeats} starts")
    for part in found[0]:
        values = [parts[part] for parts in found]
        table.add_row(part, f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})")
    Console().print(table)
    whole = [sum(parts.values()) for parts in found]
    named = ", ".join(f"{part} {statistics.median(p[part] for p in found):.2f}" for part in found[0])
    told = f"import torch, lightning: {amount(imports, 's')}"
    row = Row(
        "from a process' birth through its first step", f"{amount(whole, 's')}: {named}", told, ratios(whole, imports)
    )
    hand_over("startup", [row])


if __name__ == "__main__":
    main()
