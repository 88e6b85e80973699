"""A real MLflow server that is killed while a run streams to it, and comes back: every point is there, once."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from monitoring.store import mlflow_environment, store_uri
from monitoring.stream import streaming
from tests.monitoring.conftest import Bench
from tests.monitoring.run_factory import attempt, end, expected, grow, make_run
from tests.monitoring.test_dashboard import ask, wait_for


@contextmanager
def server(bench: Bench, port: int) -> Iterator[Callable[[], None]]:
    """An MLflow server that answers; gives what kills all of it."""
    words = ["server", "--backend-store-uri", store_uri(bench.path), "--host", "127.0.0.1", "--port", str(port)]
    with (bench.path.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--workers", "1", "--no-serve-artifacts"],
            env=mlflow_environment(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def kill() -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def answers() -> bool:
        assert process.poll() is None, (bench.path.parent / "server.log").read_text()
        try:
            return bool(ask(f"http://127.0.0.1:{port}/health"))
        except (OSError, urllib.error.URLError):
            return False

    try:
        wait_for(answers, 240)
        yield kill
    finally:
        if process.poll() is None:
            kill()


def points_there(path: Path) -> int:
    with closing(sqlite3.connect(path)) as store:
        return int(store.execute("SELECT COUNT(*) FROM metrics").fetchone()[0])


def test_a_server_that_is_killed_and_comes_back_has_every_point_once(bench: Bench):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = make_run(bench.runs)
    attempt(run, 0, 1500)
    said = run.logs / "stream.log"
    with streaming(run, f"http://127.0.0.1:{port}"):
        with server(bench, port) as kill:
            wait_for(lambda: points_there(bench.path), 120)  # in the middle: 3,000 points are three requests
            kill()
        grow(run, range(1501, 1600))
        wait_for(lambda: "not sent" in said.read_text(), 120)
        before = points_there(bench.path)
        with server(bench, port):
            wait_for(lambda: points_there(bench.path) > before, 180)
            grow(run, range(1600, 1610))
            end(run, "complete", 1609)
            wait_for(lambda: points_there(bench.path) == 2 * 1609, 180)
            wait_for(lambda: bench.run().info.status == "FINISHED", 60)
    assert bench.points(bench.run().info.run_id) == expected(run)
