"""A part of a benchmark in a process of its own: none finds another's memory or threads, and one that hangs ends alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lines_of(benchmark: str, words: list[str], seconds: float) -> list[str] | str:
    """What ``python -m benchmarks.NAME WORDS`` prints on one thread, line by line; or in one sentence why it printed nothing."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done in {seconds:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return done.stdout.rstrip("\n").splitlines()
