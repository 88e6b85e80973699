"""What one look at 1,000 runs costs, with 200 jobs in the queue of a practice cluster (started for this).

    python -m benchmarks.status [--runs 1000] [--jobs 200] [--repeats 7]

Cold: nothing is kept from an earlier look, and SLURM is asked. Warm: as every look within the minute after. Each is a command of its own,
from Enter to the prompt, so the bare interpreter is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.launch import seconds
from benchmarks.rows import Row, amount, hand_over
from monitoring.overview import CACHE
from monitoring.slurm_jobs import ANSWER
from tests.cluster.cluster import Cluster
from tests.conftest import ROOT
from tests.monitoring.run_factory import attempt, end, finished_run, make_run

ALIVE = 20  # of the runs; their journals are read
STEPS = 400  # lines of a journal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-status-") as text:
        folder = Path(text)
        cluster = Cluster(folder / "slurm")
        cluster.up()
        try:
            jobs = [cluster.sbatch("--hold", "--output=/dev/null", "--wrap", "true") for _ in range(args.jobs)]
            make_runs(folder / "runs", args.runs, jobs)
            found = measure(cluster, folder / "runs", args.repeats)
            show(found, args)
            hand_over("status", compared(found, args))
        finally:
            cluster.down()


def make_runs(root: Path, count: int, jobs: list[str], steps: int = STEPS) -> None:
    """Some that train, as many that wait as there are jobs, and the rest complete; fsync is left out, for this is no one's work."""
    synced, os.fsync = os.fsync, lambda _: None  # type: ignore[assignment]
    for number in range(count):
        identity = f"{number:08x}"
        if number < ALIVE:
            attempt(make_run(root, identity=identity), 0, steps)
        elif number < ALIVE + len(jobs):
            make_run(root, identity=identity).record("queued", job_id=jobs[number - ALIVE])
        elif number % 10:
            finished_run(root, identity, steps=steps)
        else:
            run = make_run(root, identity=identity)
            attempt(run, 0, steps)
            end(run, "failed", steps, message=f"the loss is nan at step {steps}")
    os.fsync = synced


def measure(cluster: Cluster, root: Path, repeats: int) -> dict[str, list[float]]:
    env = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)}
    look = [sys.executable, "monitoring/status.py", "--runs", str(root)]
    found: dict[str, list[float]] = {"interpreter": [], "squeue": [], "status.py, cold": [], "status.py, warm": []}
    for _ in range(repeats):
        for name in (CACHE, ANSWER):
            (root / name).unlink(missing_ok=True)
        found["interpreter"].append(seconds([sys.executable, "-c", "pass"], env))
        found["squeue"].append(seconds(["squeue"], env))
        found["status.py, cold"].append(seconds(look, env))
        asked = json.loads((root / ANSWER).read_text())["asked"]
        found["status.py, warm"].append(seconds(look, env))
        assert json.loads((root / ANSWER).read_text())["asked"] == asked, "SLURM was asked twice within a minute"
    told = json.loads(subprocess.run([*look, "--json"], cwd=ROOT, env=env, capture_output=True, text=True).stdout)
    states = [run["state"] for run in told["runs"]]
    print(f"{len(states)} runs: {states.count('running')} running, {states.count('queued')} queued", file=sys.stderr)
    return found


def compared(found: dict[str, list[float]], args: argparse.Namespace) -> list[Row]:
    """Warm is as it is typed again within a minute: what is asked for one run must not grow with a thousand."""
    rows = []
    for name in ("status.py, cold", "status.py, warm"):
        beyond = [a - b for a, b in zip(found[name], found["interpreter"], strict=True)]
        what = f"{name}: {args.runs} runs, {args.jobs} jobs, beyond the interpreter"
        beside = f"interpreter: {amount(found['interpreter'], 's')}; squeue: {amount(found['squeue'], 's')}"
        rows.append(Row(what, amount(found[name], "s"), beside, beyond, "s", at_most=0.6 if "warm" in name else None))
    return rows


def show(found: dict[str, list[float]], args: argparse.Namespace) -> None:
    table = Table(f"{args.runs} runs, {args.jobs} jobs", "median", "min", "max")
    for name, values in found.items():
        table.add_row(name, *(f"{v * 1000:.0f} ms" for v in (statistics.median(values), min(values), max(values))))
    Console().print(table)


if __name__ == "__main__":
    main()
