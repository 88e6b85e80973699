"""From the cluster's journal to MLflow's client on the laptop, with one command; and what lives after it: nothing."""

from __future__ import annotations

import importlib.util
import sqlite3
import subprocess
import time
from contextlib import closing

import pytest

from monitoring import dashboard
from monitoring.run_facts import read_run
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.runs import RunFolder
from tests.monitoring.run_factory import attempt, finished_run, grow, make_run
from tests.sync.cluster_runs import RUN
from tests.sync.far_side import FarSide


@pytest.fixture
def laptop(far: FarSide, monkeypatch) -> FarSide:
    monkeypatch.setenv("SLURMPHONY_PULLED", str(far.here / "pulled"))
    monkeypatch.setenv("SLURMPHONY_RUNS", str(far.here / "runs"))
    (far.here / "runs").mkdir()

    def command(host: str, *words: str) -> list[str]:
        return far.line("pull", host, *words, *(["--every", "0.2"] if words else []))

    monkeypatch.setattr(dashboard, "pull_command", command)
    return far


def test_clusters_are_shown_beside_this_machine(laptop: FarSide):
    args = dashboard.parse(["--pull", "faraway"])
    finished_run(laptop.runs)
    dashboard.pull("faraway")
    assert dashboard.roots_of(args) == [laptop.here / "runs", laptop.pulled]
    assert read_run(RunFolder(laptop.pulled / RUN)).tags["cluster"] == "faraway"
    with pytest.raises(UserError, match="--runs leaves out"):
        dashboard.parse(["--pull", "faraway", "--runs", str(laptop.here)])
    with pytest.raises(UserError, match="nothing came from nowhere; see above"):
        dashboard.pull("nowhere")


@pytest.mark.soak
def test_one_command_brings_and_imports_beside_what_is_here(laptop: FarSide):
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("MLflow is not installed: the dashboard of pulled runs is NOT tested here (make setup)")
    finished_run(laptop.runs)
    finished_run(laptop.here / "runs")  # of the same name, on this machine
    store = laptop.here / "mlflow.db"
    assert dashboard.main(["--pull", "faraway", "--store", str(store), "--import-only"]) == 0
    with closing(sqlite3.connect(store)) as connection:
        clusters = connection.execute("SELECT value FROM tags WHERE key = 'cluster'").fetchall()
        points = connection.execute("SELECT COUNT(*) FROM metrics").fetchone()
        names = connection.execute("SELECT COUNT(DISTINCT run_uuid) FROM runs").fetchone()
    assert (clusters, points, names) == ([("faraway",)], (80,), (2,))


def test_what_is_new_comes_while_it_shows_and_ends_with_it(laptop: FarSide):
    run = make_run(laptop.runs)
    attempt(run, 0, 5)
    journal = laptop.pulled / RUN / "metrics/attempt_001.jsonl"
    with dashboard.following(["faraway"]):
        laptop.wait(journal.is_file)
        grow(run, range(6, 9))
        laptop.wait(lambda: journal.read_bytes() == run.journal_file(1).read_bytes())
    before = journal.read_bytes()
    grow(run, range(9, 12))
    time.sleep(0.5)
    assert journal.read_bytes() == before


def test_a_pull_ends_with_the_dashboard_that_was_killed(laptop: FarSide):
    process = laptop.start("pull", "faraway", "--watch", "--until-closed", stdin=subprocess.PIPE)
    process.stdin.close()
    assert process.wait(30) == 0


def test_a_pulled_run_stands_as_it_stood_when_the_cluster_was_asked(laptop: FarSide):
    """Hours later a run that was alive then is not shown as killed."""
    run = make_run(laptop.runs)
    attempt(run, 0, 5)
    run.beat(step=5)
    assert dashboard.subprocess.run(dashboard.pull_command("faraway"), capture_output=True).returncode == 0
    here = RunFolder(laptop.pulled / RUN)
    beat = here.heartbeat()["time"]
    for seen, state in ((beat + 5, "running"), (beat + 3600, "killed")):
        write_json(laptop.pulled / ".sync" / "seen.json", {"host": "faraway", "time": seen})
        assert read_run(here).state == state
