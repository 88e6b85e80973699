"""Sync against plain rsync on one machine: looking at 10,000 unchanged files, bringing them, and verifying large ones.

`python -m benchmarks.sync [--files N] [--size MB]`. Needs sshd and rsync (openssh-server, rsync): it starts a login node on loopback.
Ratios of one run count; seconds are those of this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jobs.profiles
from benchmarks.measure import in_turns, memory_folder, seconds
from benchmarks.rows import Row, amount, hand_over, ratios
from pipeline.errors import run_command
from pipeline.runs import RunFolder
from sync import pull, verify
from tests.conftest import ROOT
from tests.monitoring.run_factory import finished_run
from tests.sync.cluster_runs import with_environment
from tests.sync.far_side import FarSide, login_node

REPEATS = 9
NEW = 3  # times that all files are brought
RSYNC = shutil.which("rsync") or "rsync"  # not the laptop's poor one


def median_seconds(work: Callable[[], object], times: int) -> float:
    return statistics.median(seconds(work) for _ in range(times))


def clone(far: FarSide) -> Path:
    """The code as it lies on a laptop, with the profile of the login node: its commands can be typed there."""
    here = far.here / "slurmphony"
    for folder in ("sync", "jobs", "pipeline", "configs/clusters"):
        shutil.copytree(ROOT / folder, here / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(far.profiles / "faraway.yaml", here / "configs" / "clusters")
    return here


def plain_rsync(far: FarSide, target: Path) -> None:
    """`rsync -a` of the same tree over the same kept connection."""
    shell = f"ssh -o ControlPath={far.here}/home/.ssh/sl-%C"
    command = [RSYNC, "-a", "-e", shell, f"faraway:{far.runs}/", f"{target}/"]
    subprocess.run(command, env=far.environment, check=True, stdout=subprocess.DEVNULL)


def bring_new(far: FarSide) -> tuple[list[float], list[float]]:
    """Seconds of each turn, ours and plain rsync's, into folders of their own; the looks that follow are of the last pair."""
    new, plain_new = [], []
    for turn in reversed(range(NEW)):
        ours, theirs = (far.here / f"{kind}{turn or ''}" for kind in ("pulled", "plain"))
        new.append(seconds(lambda to=ours: pull.main(["faraway", "--to", str(to)])))  # type: ignore[misc]
        plain_new.append(seconds(lambda to=theirs: plain_rsync(far, to)))  # type: ignore[misc]
    return new, plain_new


def verified(far: FarSide, run: RunFolder, where: list[str], megabytes: int) -> tuple[float, float]:
    """GB a second of a checkpoint of ``megabytes``: here alone, and on both sides."""
    files = max(1, megabytes // 200)
    big = run.checkpoints / "step_000000010"
    big.mkdir()
    for number in range(files):
        (big / f"shard-{number}.safetensors").write_bytes(os.urandom(200_000_000))
    pull.main(["faraway", *where, "--only", "checkpoints"])
    only = ["--only", "checkpoints", *where, "--runs", str(far.here / "own")]
    looks = (lambda: verify.main(only), lambda: verify.main(["faraway", *only]))
    offline, online = (files * 0.2 / median_seconds(look, 3) for look in looks)
    return offline, online


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sync", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="small files of the run (default 10,000)")
    parser.add_argument("--size", type=int, default=1_000, help="MB of large files to verify (default 1,000)")
    args = parser.parse_args()
    tempfile.tempdir = memory_folder()  # both sides lie there: what is measured is not a disk that forgets files slowly
    with contextlib.contextmanager(login_node)() as far:
        os.environ.update({name: far.environment[name] for name in ("PATH", "HOME")})
        jobs.profiles.PROFILES = far.profiles
        with_environment(far)
        run = finished_run(far.runs)
        for number in range(args.files):
            (run.samples / f"{number:05d}.wav").write_bytes(os.urandom(1000))
        where = ["--to", str(far.here / "pulled")]
        new, plain_new = bring_new(far)
        first, plain_first = statistics.median(new), statistics.median(plain_new)
        laptop = clone(far)
        line = [sys.executable, "sync/pull.py", "faraway", *where]
        environment = {**far.environment, "PYTHONPATH": str(laptop)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody's laptop compiles at every start
        subprocess.run(line, env=environment, cwd=laptop, check=True)
        found = in_turns(
            {
                "pull": lambda: pull.main(["faraway", *where]),
                "plain": lambda: plain_rsync(far, far.here / "plain"),
                "typed": lambda: subprocess.run(line, env=environment, cwd=laptop, check=True),
            },
            REPEATS,
        )
        again, plain_again, typed = (statistics.median(values) for values in found.values())
        offline, online = verified(far, run, where, args.size)
        print(
            f"\n{args.files} new files: {first:.2f} s; plain rsync {plain_first:.2f} s; ratio {first / plain_first:.2f}"
        )
        print(
            f"{args.files} unchanged: {again:.2f} s; plain rsync {plain_again:.2f} s; ratio {again / plain_again:.2f}"
        )
        print(f"  as typed, with Python's start: {typed:.2f} s; ratio {typed / plain_again:.2f}")
        beside = f"plain rsync: {amount(found['plain'], 's')}"
        hand_over(
            "sync",
            [
                Row(f"{args.files:,} new files", amount(new, "s"), f"plain rsync: {amount(plain_new, 's')}", ratios(new, plain_new)),
                Row(f"{args.files:,} unchanged files", amount(found["pull"], "s"), beside, ratios(found["pull"], found["plain"])),
                Row("the same as typed", amount(found["typed"], "s"), beside, ratios(found["typed"], found["plain"]), at_most=1.5),
            ],
        )  # fmt: skip
        print(f"verify, warm cache: {offline:.2f} GB/s here alone, {online:.2f} GB/s on both sides")
    return 0


if __name__ == "__main__":
    run_command(main)
