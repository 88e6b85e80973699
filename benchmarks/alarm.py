"""How soon a trouble is known: a hang and a loss that is not finite, planted into a real training of two processes.

    python -m benchmarks.alarm [--repeats 2]

The hang: rank 1 sleeps in its third step; from its last sign of life to the event in the run's history, over the threshold (the larger
of ``trainer.hang_seconds``, here two seconds, and ten usual steps). The loss: rank 1's is NaN from a moment on, in a run that logs and
saves its loss never; from that moment to the event. And whether the right rank is named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row, amount, hand_over
from monitoring.why import judge
from pipeline.runs import RunFolder
from tests.monitoring.dying import PLANTED, die
from tests.pipeline.shard_factory import write_dataset
from tests.pipeline.stack import config_of


def run_in(folder: Path) -> tuple[RunFolder, Path]:
    run = RunFolder(folder / "runs" / "stack" / "0123abcd")
    run.create()
    run.config_file.write_text(config_of().to_yaml())
    run.record("created", config={})
    write_dataset(folder / "data", [64])
    return run, write_dataset(folder / "data", [16], "valid").folder


def until_known(way: str, event: str) -> tuple[float, float, int | None]:
    """(seconds until the history has it, the threshold that held then or 0, the rank that ``why.py`` names)."""
    with tempfile.TemporaryDirectory(prefix="bench-alarm-") as text:
        run, data = run_in(Path(text))
        die(way, run, data, 2, patience=180)
        told = next(e for e in run.history() if e["event"] == event)
        planted = run.path / PLANTED
        seconds = told["time"] - json.loads(planted.read_text()) if planted.exists() else told["silent_s"]
        return seconds, told.get("limit_s", 0.0), judge(run).rank


def compared(name: str, found: list[tuple[float, float, int | None]]) -> Row:
    """A hang over its threshold; where there is none, the half minute within which a loss is looked at and another of grace."""
    assert all(rank == 1 for _, _, rank in found), "why.py names another rank than the one that it was planted on"
    taken = amount([seconds for seconds, _, _ in found], "s")
    values = [seconds / (limit or 60.0) for seconds, limit, _ in found]
    return Row(f"until {name} is known", taken, "its threshold" if found[0][1] else "a minute", values, at_most=2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    rows: list[Row] = []
    table = Table("planted on rank 1", "seconds until known, least .. most", "over the threshold", "rank named")
    for name, way, event in (
        ("a hang", "rank 1 sleeps", "hung"),
        ("a loss that is NaN, and never logged", "rank 1 is nan, unlogged", "end"),
    ):
        found = [until_known(way, event) for _ in range(args.repeats)]
        rows.append(compared(name, found))
        seconds = sorted(s for s, _, _ in found)
        over = [s / limit for s, limit, _ in found if limit]
        named = ", ".join(dict.fromkeys(str(rank) for _, _, rank in found))
        table.add_row(name, f"{seconds[0]:.1f} .. {seconds[-1]:.1f}", f"{max(over):.2f} at most" if over else "", named)
    Console().print(table)
    hand_over("alarm", rows)


if __name__ == "__main__":
    main()
