"""Whether a job comes back: judged by the run's own history alone. (With a real scheduler: tests/jobs/test_slurm.py.)"""

import os

import pytest

from jobs import requeue as requeues
from jobs.requeue import reason_to_give_up
from jobs.train_job import TrainJob
from pipeline.errors import EXIT_USER_ERROR
from pipeline.files import write_json
from pipeline.runs import RunFolder
from tests.conftest import ROOT, command


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "demo" / "0123abcd")
    run.create()
    run.record("created")
    return run


def attempt(run, job, number, after_step=0):
    run.record("attempt", attempt=number, after_step=after_step, job_id=job)


def asked_by(monkeypatch, run, job, exit_code=137):
    monkeypatch.setenv("SLURM_JOB_ID", job)
    return reason_to_give_up(run, job, exit_code)


def test_a_superseded_job_does_not_take_the_run_back(run, monkeypatch):
    run.record("queued", job_id="1")
    attempt(run, "1", 1)
    run.record("queued", job_id="2")
    attempt(run, "2", 2)
    run.record("superseded", attempt=1, job_id="1", step=40)
    assert asked_by(monkeypatch, run, "1") == "a later attempt has taken over"
    assert asked_by(monkeypatch, run, "2") is None, "the one that took over may come back"


def test_a_job_that_died_while_another_trains_its_run_stays_away(run, monkeypatch):
    run.record("queued", job_id="1")
    attempt(run, "1", run.claim_attempt())
    attempt(run, None, run.claim_attempt())  # of this process, which lives
    assert asked_by(monkeypatch, run, "1") == "a later attempt has taken over"


def test_an_attempt_superseded_by_its_own_jobs_next_start_harms_nobody(run, monkeypatch):
    """A node that SLURM had given up wakes beside the job's second start."""
    run.record("queued", job_id="1")
    attempt(run, "1", 1)
    attempt(run, "1", 2)
    run.record("superseded", attempt=1, job_id="1", step=40)
    assert asked_by(monkeypatch, run, "1") is None


def test_three_starts_without_progress_are_counted_for_one_job(run, monkeypatch):
    run.record("queued", job_id="1")
    for number in (1, 2):
        attempt(run, "1", number)
        assert asked_by(monkeypatch, run, "1") is None
        run.record("requeued", job_id="1", after_step=0)
    attempt(run, "1", 3)
    assert asked_by(monkeypatch, run, "1") == "3 starts have not got beyond step 0"
    run.record("gave_up", job_id="1", message="")
    run.record("queued", job_id="9")
    assert asked_by(monkeypatch, run, "9") is None, "what a former job met has been mended"


def test_how_a_former_job_ended_says_nothing_of_this_one(run, monkeypatch):
    run.record("queued", job_id="1")
    attempt(run, "1", 1)
    run.record("end", attempt=1, reason="failed", step=3, message="the loss is nan")
    assert asked_by(monkeypatch, run, "1") == "the loss is nan"
    run.record("queued", job_id="2")
    assert asked_by(monkeypatch, run, "2") is None, "its node went down before it had begun"


SCONTROL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
"""


@pytest.mark.parametrize(("starts", "comes_back"), [("0", True), ("1", True), ("2", False)])
def test_a_history_that_takes_no_more_does_not_make_it_start_for_ever(
    run, tmp_path, monkeypatch, capsys, starts, comes_back
):
    """What cannot be counted in the history is counted by SLURM."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL)
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", starts)
    run.record("queued", job_id="7")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.runs.append_line", full)
    assert requeues.requeue(run, "srun ended with exit code 137", 137) is comes_back
    assert ("requeue 7" in (tmp_path / "bin" / "asked").read_text()) is comes_back
    if not comes_back:
        assert "cannot be written (No space left on device), after 3 starts" in capsys.readouterr().err


def test_a_mistake_on_slurm_is_a_sentence_in_the_log_and_in_the_history(run, monkeypatch):
    """Through submitit's own entry, as the batch script calls it; what is wrong is the data."""
    from submitit.core.utils import DelayedSubmission

    DelayedSubmission(TrainJob(str(run.path))).dump(run.logs / "77_submitted.pkl")
    write_json(run.launch_file, {"data": str(run.path / "gone")})
    run.config_file.write_text("model: {system: dismix}\nbatch: 3\n")
    run.record("end", attempt=1, reason="warned", step=5)
    run.record("queued", job_id="77")
    task = {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NTASKS": "1", "NNODES": "1", "JOB_NUM_NODES": "1"}
    env = {f"SLURM_{name}": value for name, value in task.items()}
    env |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1", "SUBMITIT_EXECUTOR": "slurm", "PYTHONPATH": str(ROOT)}
    done = command("-u", "-m", "submitit.core._submit", run.logs, env=env)
    assert done.returncode == EXIT_USER_ERROR and "Traceback" not in done.stderr, done.stderr
    assert "error: " in done.stderr and "'batch'" in done.stderr
    _, end = [e for e in run.history() if e["event"] == "end"]
    assert end["reason"] == "failed" and "'batch'" in end["message"]
    assert "'batch'" in asked_by(monkeypatch, run, "77", 137), "srun tells the code of a rank that it killed"


@pytest.mark.parametrize(
    ("facts", "comes_back"),
    [
        ({"JobState": "RUNNING", "PreemptTime": "2026-01-01T00:00:00"}, True),
        ({"JobState": "SIGNALING", "PreemptTime": "2026-01-01T00:00:00"}, True),
        ({"JobState": "RUNNING", "PreemptTime": "None"}, False),
        ({"JobState": "COMPLETING", "PreemptTime": "2026-01-01T00:00:00"}, False),
        ({"JobState": "COMPLETING", "Reason": "TimeLimit"}, True),
    ],
)
def test_after_sigterm_a_job_comes_back_by_itself_where_slurm_would_not_send_it(facts, comes_back):
    assert requeues.must_come_back(facts) is comes_back


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING", "COMPLETING"])
def test_a_job_goes_back_while_it_runs_and_while_a_signal_is_on_its_way_to_it(run, monkeypatch, state):
    asked = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(requeues, "job_facts", lambda job: {"JobState": state})
    monkeypatch.setattr(requeues, "_scontrol", lambda run, job, *words: asked.append(words) or True)
    assert requeues.requeue(run, "a rank was killed", 137) is (state != "COMPLETING")
    assert asked == ([("requeue", "7")] if state != "COMPLETING" else [])
