"""The command as it is typed: its errors, one import, and MLflow's real server started, asked and ended in three ways."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitoring import dashboard
from pipeline.errors import UserError
from tests.monitoring.conftest import Bench
from tests.monitoring.run_factory import PNG, add_samples, attempt, finished_run, grow, make_run

SCRIPT = Path(dashboard.__file__)


def typed(bench: Bench, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--runs", str(bench.runs), "--store", str(bench.path), "--no-open", *words]


def run_command(bench: Bench, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(typed(bench, *words), capture_output=True, text=True, timeout=60)


def test_help_needs_neither_mlflow_nor_anything_slow():
    slow = {"mlflow", "sqlalchemy", "pydantic", "numpy", "torch"}
    program = f"import sys, monitoring.dashboard; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_users_mistakes_are_one_sentence(bench: Bench, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*--runs"):
        dashboard.main(["--runs", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="is no port"):
        dashboard.main(["--port", "70000"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_command(bench, "--port", str(port))
        assert (
            done.returncode == 2 and f"--port {port} cannot be used" in done.stderr and "Traceback" not in done.stderr
        )
        assert dashboard.choose_port(None) != port


def test_import_only_tells_a_line_a_run_and_names_the_store(bench: Bench):
    finished_run(bench.runs, "00000000")
    done = run_command(bench, "--import-only")
    assert (done.returncode, done.stdout) == (0, f"{bench.path}\n")
    assert done.stderr == "dismix_demo/00000000  complete  40 points (40 new, 0 unchanged)\n"
    make_run(bench.runs, identity="11111111").config_file.write_text("[")
    done = run_command(bench, "--import-only")
    assert done.returncode == 1 and "dismix_demo/11111111  NOT IMPORTED" in done.stderr
    assert "40 points (0 new, 40 unchanged)" in done.stderr


def test_no_runs_yet_is_no_error(bench: Bench):
    done = run_command(bench, "--import-only")
    assert done.returncode == 0 and "no runs yet" in done.stderr and "jobs/launch.py" in done.stderr


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.1)
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def started(bench: Bench, tmp_path: Path) -> Iterator[psutil.Popen]:
    """A dashboard on a free port; whatever is left of it at the end is killed and is a failure."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": "http://192.0.2.1:1",
        "HTTP_PROXY": "http://192.0.2.1:1",
    }  # not ours to ask
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = psutil.Popen(typed(bench, "--port", str(port)), env=env, stdout=out, stderr=err)
    family: list[psutil.Process] = []
    try:
        # MLflow's command line starts the server as a process of its own.
        wait_for(lambda: len(process.children(recursive=True)) > 1, 60)
        family += process.children(recursive=True)
        yield process
        wait_for(lambda: not alive([process, *family]), 20)
    finally:
        for left in alive([process, *family]):
            left.kill()
        process.wait(10)


def ask(address: str, body: dict[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=20) as reply:
        return bytes(reply.read())


def test_the_servers_pages_show_a_run_that_is_growing(bench: Bench, tmp_path):
    run = make_run(bench.runs)
    attempt(run, 0, 10)
    add_samples(run)
    with started(bench, tmp_path) as process:
        wait_for(lambda: (tmp_path / "out").read_text() or process.poll() is not None, 120)
        address = (tmp_path / "out").read_text().strip()
        assert address.startswith("http://127.0.0.1:"), (tmp_path / "err").read_text()
        assert b"<title>MLflow</title>" in ask(address)
        (shown,) = json.loads(ask(f"{address}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]}))["runs"]
        assert (shown["info"]["run_name"], shown["info"]["status"]) == ("dismix_demo/1f3a9c2e", "RUNNING")
        query = f"run_id={shown['info']['run_id']}"
        assert ask(f"{address}/get-artifact?{query}&path=figures/swap.png") == PNG
        history = f"{address}/api/2.0/mlflow/metrics/get-history?{query}&metric_key=train/loss"
        assert len(json.loads(ask(history))["metrics"]) == 10
        grow(run, range(11, 16))
        wait_for(lambda: len(json.loads(ask(history))["metrics"]) == 15, 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert (tmp_path / "err").read_text().endswith("ended; the store stays.\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)], ids=["Ctrl-C", "kill -9"]
)
def test_the_server_ends_with_the_dashboard(bench: Bench, tmp_path, number, code):
    finished_run(bench.runs)
    with started(bench, tmp_path) as process:
        process.send_signal(number)
        assert process.wait(20) == code
