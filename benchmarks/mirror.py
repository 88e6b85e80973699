"""What the mirror costs: 50,000 points into MLflow's store, again, and 600 more; and what a journal's line costs the training thread.

    python -m benchmarks.mirror [--points N] [--repeats 3]

MLflow's own client logs the same points into a store of its own, in batches of 1,000 (the most that one call takes); the two take
turns, each into a store that is new. Importing MLflow and making the stores is not counted.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import seconds
from benchmarks.rows import Row, amount, hand_over, ratios
from monitoring.mirror import Mirror
from monitoring.store import mlflow_environment, open_store, store_uri
from pipeline.errors import run_command
from pipeline.journal import Journal, read_journals
from pipeline.runs import RunFolder
from tests.monitoring.run_factory import attempt, grow, make_run

METRICS = 100  # of a journal's line
LINES = 5_000
BATCH = 1_000  # the most metrics that MLflow's client takes in one call


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


def by_client(run: RunFolder, client: Any) -> None:
    """The run's points by MLflow's own client: what one would write instead."""
    from mlflow.entities import Metric

    identity = client.create_run("0").info.run_id
    points = [
        Metric(name, value, int(1000 * point.time), point.step)
        for point in read_journals(run.metrics)
        for name, value in point.metrics.items()
    ]
    for begin in range(0, len(points), BATCH):
        client.log_batch(identity, points[begin : begin + BATCH])


def beside_client(run: RunFolder, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds that the mirror and the client take for the run, in turns."""
    os.environ.update(mlflow_environment())
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.ERROR)
    found: dict[str, list[float]] = {"mirror": [], "client": []}
    for turn in range(repeats):
        store = open_store(folder / f"mirror_{turn}.db", print)
        mirror = Mirror(store, lambda: [run.path.parents[1]], folder / f"artifacts_{turn}")
        found["mirror"].append(seconds(lambda mirror=mirror: list(mirror.update())))  # type: ignore[misc]
        store.close()
        client = MlflowClient(tracking_uri=store_uri(folder / f"client_{turn}.db"))
        client.search_experiments()
        found["client"].append(seconds(lambda client=client: by_client(run, client)))  # type: ignore[misc]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
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
        found = beside_client(run, folder, args.repeats)
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
    told = f"MLflow's client: {amount(found['client'], 's')}"
    values = ratios(found["mirror"], found["client"])
    line = amount([statistics.median(took) / 1000], "s")
    rows = [Row(f"importing {args.points:,} points", amount(found["mirror"], "s"), told, values, at_most=1.0)]
    rows.append(Row(f"a journal's line of {METRICS} metrics", line, "nothing", [ms / 1000 for ms in took[:-50]], "s"))
    hand_over("mirror", rows)
    return 0


if __name__ == "__main__":
    run_command(main)
