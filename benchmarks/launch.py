"""What ``launch.py`` costs beside a bare interpreter and sbatch, from Enter to accepted, on the practice cluster (started for this).

    python -m benchmarks.launch [--repeats 7]

Every launch is of a new run: its folder, frozen config and code snapshot are made. ``--no-preflight``: what preflight looks at is not
launching. The jobs are held back by a partition that is full, and cancelled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row, amount, hand_over
from pipeline.manifest import MANIFEST, sealed, unsealed
from tests.cluster.cluster import Cluster
from tests.conftest import ROOT
from tests.pipeline.shard_factory import write_dataset


def seconds(command: list[str], env: dict[str, str] | None) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-launch-") as text:
        folder = Path(text)
        data = write_dataset(folder / "data" / "cocochorales_simple_demo", [8])
        path = data.folder / MANIFEST
        path.write_bytes(sealed({**unsealed(path.read_bytes()), "recipe": "cocochorales_simple_demo"}))
        cluster = Cluster(folder / "slurm")
        cluster.up()
        try:
            cluster.sbatch("--output=/dev/null", "--partition=gpu", "--nodes=3", "--exclusive", "--wrap", "sleep 600")
            found = measure(cluster, folder, args.repeats)
            show(found)
            hand_over("launch", compared(found))
        finally:
            cluster.down()


def measure(cluster: Cluster, folder: Path, repeats: int) -> dict[str, list[float]]:
    env = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "jobs/launch.py", "dismix_demo", "--cluster", "practice", "--no-preflight"]
    where = ["--data", str(folder / "data"), "--runs", str(folder / "runs")]
    found: dict[str, list[float]] = {"interpreter": [], "sbatch": [], "launch.py": [], "launch.py --dry-run": []}
    for number in range(repeats + 1):
        took = {
            "interpreter": seconds([sys.executable, "-c", "pass"], env),
            "sbatch": seconds(["sbatch", "--output=/dev/null", "--partition=gpu", "--wrap", "true"], env),
            "launch.py": seconds([*launch, *where, "--set", f"seed={number}"], env),
            "launch.py --dry-run": seconds([*launch, *where, "--dry-run"], env),
        }
        if number:  # the first one warms the page cache
            for name, value in took.items():
                found[name].append(value)
    return found


def compared(found: dict[str, list[float]]) -> list[Row]:
    told = {name: f"{name}: {amount(values, 's')}" for name, values in found.items()}
    python, sbatch, launch, dry = found.values()
    beyond = [a - b - c for a, b, c in zip(launch, python, sbatch, strict=True)]
    dry_beyond = [a - b for a, b in zip(dry, python, strict=True)]
    both = f"plain {told['sbatch']}; {told['interpreter']}"
    return [
        Row("from Enter to accepted by SLURM, beyond both", told["launch.py"], both, beyond, "s"),
        Row("a dry run, beyond the interpreter", told["launch.py --dry-run"], told["interpreter"], dry_beyond, "s", at_most=0.6),
    ]  # fmt: skip


def show(found: dict[str, list[float]]) -> None:
    table = Table("", "median", "min", "max")
    for name, values in found.items():
        table.add_row(name, *(f"{v * 1000:.0f} ms" for v in (statistics.median(values), min(values), max(values))))
    extra = [a - b - c for a, b, c in zip(found["launch.py"], found["interpreter"], found["sbatch"], strict=True)]
    table.add_section()
    table.add_row(
        "launch.py beyond both", *(f"{v * 1000:.0f} ms" for v in (statistics.median(extra), min(extra), max(extra)))
    )
    Console().print(table)


if __name__ == "__main__":
    main()
