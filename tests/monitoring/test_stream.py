"""The journal to a tracking server by MLflow's own API; and a server that is not there, which no training notices."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from mlflow.exceptions import MlflowException

from monitoring import stream as stream_module
from monitoring.stream import OWN_ID, Outlet, streaming
from pipeline.errors import UserError
from tests.monitoring.conftest import Bench
from tests.monitoring.run_factory import attempt, end, expected, finished_run, grow, make_run
from tests.monitoring.test_mirror import troubled

NOWHERE = "http://127.0.0.1:9"  # where nobody listens


def test_points_parameters_and_state_arrive_and_go_on(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 700, troubled)
    outlet = Outlet(bench.client(), run)
    assert outlet.send() == 1400 and outlet.send() == 0
    shown = bench.run()
    assert shown.info.status == "RUNNING" and shown.data.params["model.system"] == "dismix"
    assert bench.points(shown.info.run_id) == expected(run)
    grow(run, range(701, 704), troubled)
    end(run, "complete", 703)
    assert outlet.send() == 6
    shown = bench.run()
    assert (shown.info.status, shown.data.tags["state"]) == ("FINISHED", "complete")
    assert bench.points(shown.info.run_id) == expected(run)


def test_another_process_goes_on_with_the_same_run_and_doubles_nothing(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 20)
    Outlet(bench.client(), run).send()
    grow(run, range(21, 31))
    Outlet(bench.client(), run).send()
    shown = bench.run()
    assert shown.data.tags[OWN_ID] and bench.points(shown.info.run_id) == expected(run)


def test_what_failed_is_sent_later(bench: Bench, monkeypatch):
    run = finished_run(bench.runs)
    client = bench.client()
    outlet = Outlet(client, run)
    real = client.log_batch

    def away(run_id, metrics=(), **rest):
        if metrics:
            raise MlflowException("the server is away")
        real(run_id, metrics, **rest)

    monkeypatch.setattr(client, "log_batch", away)
    with pytest.raises(MlflowException):
        outlet.send()
    monkeypatch.setattr(client, "log_batch", real)
    grow(run, range(21, 24))
    outlet.send()
    assert bench.points(bench.run().info.run_id) == expected(run)


@contextmanager
def beside(run, uri):
    """The sidecar while the block runs; it must be gone soon after, whatever it was doing."""
    before = {child.pid for child in psutil.Process().children()}
    with streaming(run, uri):
        (child,) = [c for c in psutil.Process().children() if c.pid not in before] or [None]
        yield child
    if child:
        child.wait(60)


def test_a_server_that_is_not_there_costs_the_training_nothing(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 5)
    began = time.perf_counter()
    with streaming(run, NOWHERE), streaming(run, None), streaming(run, "sqlite:///x"):
        started = time.perf_counter() - began
    assert time.perf_counter() - began < 5 and started < 5, "neither its start nor its end is waited for"
    run.logs.joinpath("stream.log").unlink()
    run.logs.rmdir()
    with streaming(run, NOWHERE):  # not even a log can be written
        pass


def test_it_ends_with_the_training_and_says_what_was_not_sent(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 5)
    with beside(run, NOWHERE) as child:
        assert child is not None
    assert "not sent" in (run.logs / "stream.log").read_text()


def test_users_mistakes_are_one_sentence(bench: Bench, monkeypatch):
    run = make_run(bench.runs)
    monkeypatch.setattr(sys, "argv", ["stream.py", str(run.path)])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="--to http://HOST:PORT"):
        stream_module.main()


def test_the_training_side_needs_no_mlflow():
    program = "import sys, monitoring.stream; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 0
