"""What the mirror costs: 50,000 points into MLflow's store, again, and 600 more; and what a journal's line costs the training thread.

`python -m benchmarks.mirror [--points N]`. Seconds are those of this machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from monitoring.mirror import Mirror
from monitoring.store import open_store
from pipeline.errors import run_command
from pipeline.journal import Journal
from tests.monitoring.run_factory import attempt, grow, make_run

METRICS = 100  # of a journal's line
LINES = 5_000


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lines_ms(folder: Path, clock: Callable[[], float]) -> list[float]:
    """Milliseconds of each logged step by a clock, ascending."""
    journal = Journal(folder / "attempt_001.jsonl", 1, 0)
    metrics = {f"train/metric_{number}": number / 7 for number in range(METRICS)}
    took = []
    for step in range(LINES):
        began = clock()
        journal.log(step, metrics)
        took.append(1000 * (clock() - began))
    journal.close()
    return sorted(took)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mirror", description=__doc__)
    parser.add_argument("--points", type=int, default=50_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, clock in (("passing", time.perf_counter), ("of the processor", time.thread_time)):
            took = lines_ms(folder, clock)
            print(
                f"a step of {METRICS} metrics, time {what}: median {took[LINES // 2]:.3f} ms, p99 {took[-LINES // 100]:.3f} ms"
            )
        run = make_run(folder / "runs")
        attempt(run, 0, args.points // 2)
        store = open_store(folder / "mlflow.db", print)

        def fresh() -> Mirror:
            return Mirror(store, lambda: [folder / "runs"], folder / "artifacts")

        mirror = fresh()
        print(f"{args.points:,} points: {seconds(lambda: list(mirror.update())):.2f} s")
        print(f"again, by a new process: {seconds(lambda: list(fresh().update())):.2f} s")
        grow(run, range(args.points // 2 + 1, args.points // 2 + 301))
        print(f"600 more, by the same: {seconds(lambda: list(mirror.update())):.3f} s")
        os.utime(run.config_file)
        print(f"nothing more: {seconds(lambda: list(mirror.update())):.3f} s")
        store.close()
    return 0


if __name__ == "__main__":
    run_command(main)
