"""SIGKILL in the middle of an import: a run is in the store as it was before or as it is after, and the next import mends all."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.monitoring.conftest import Bench
from tests.monitoring.run_factory import add_samples, attempt, expected, grow, make_run

CHILD = Path(__file__).with_name("import_and_die.py")
TABLES = ("runs", "metrics", "latest_metrics", "params", "tags")


def child(bench: Bench, moment: str) -> subprocess.Popen[str]:
    words = [sys.executable, CHILD, bench.path, bench.runs, bench.artifacts, moment]
    return subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True)


def rows(bench: Bench) -> tuple[int, ...]:
    """How many rows each table holds; whatever a killed transaction left in the file is rolled back by opening it."""
    with closing(sqlite3.connect(bench.path)) as store:
        assert store.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        return tuple(store.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in TABLES)


def kill_at(bench: Bench, moment: str) -> None:
    killed = child(bench, moment)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    if moment == "write_points":  # half of it had reached the file: a journal to roll back lies there
        assert bench.path.with_name("mlflow.db-journal").stat().st_size > 0


def large_run(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 2000)
    add_samples(run)
    return run


@pytest.mark.parametrize("moment", ["place_artifacts", "write_run", "_write_latest", "write_points"])
def test_killed_at_every_stage_nothing_partial_is_left(bench: Bench, moment):
    run = large_run(bench)
    before = rows(bench)
    kill_at(bench, moment)
    assert rows(bench) == before
    assert bench.update()["dismix_demo/1f3a9c2e"].new == 4000
    after = rows(bench)
    grow(run, range(2001, 4001))
    kill_at(bench, moment)
    assert rows(bench) == after
    bench.update()
    assert bench.points(bench.run().info.run_id) == expected(run)


@pytest.mark.parametrize("kills", [17, pytest.param(200, marks=pytest.mark.soak)])  # and eight at the stages: 25
def test_killed_at_random_moments_one_retry_converges(bench: Bench, kills):
    run = large_run(bench)
    draw, before = random.Random(kills), rows(bench)
    seen = set()
    for _ in range(kills):
        began = child(bench, "none")
        assert began.stdout and began.stdout.readline() == "importing\n"
        time.sleep(draw.uniform(0, 0.5))
        began.kill()
        began.communicate()
        seen.add(rows(bench))
    bench.update()
    assert seen <= {before, rows(bench)}
    assert bench.points(bench.run().info.run_id) == expected(run)
