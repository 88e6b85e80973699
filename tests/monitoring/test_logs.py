"""Logs of the right rank, through requeues and into the next job. (On a real SLURM: tests/jobs/test_slurm.py.)"""

import os
import subprocess
import sys
import time

import pytest

from monitoring.logs import choose, is_over, rank_logs
from pipeline.errors import UserError
from pipeline.runs import RunFolder
from tests.conftest import ROOT, command


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "demo" / "0123abcd")
    run.create()
    run.config_file.write_text("model: {}\n")
    run.record("queued", job_id="7", logs=str(run.logs))
    return run


def write(run, job, rank, text, at=None):
    path = run.logs / f"{job}_{rank}_log.err"
    with path.open("a") as file:
        file.write(text)
    if at:
        os.utime(path, (at, at))
    return path


def shown(run, *words):
    done = command("monitoring/logs.py", run.path, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rank_0_speaks_while_all_is_well(run):
    write(run, 7, 0, "".join(f"step {n}\n" for n in range(100)))
    write(run, 7, 1, "I am rank 1\n")
    assert shown(run, "--lines", 3) == "step 97\nstep 98\nstep 99\n"
    assert shown(run, "--rank", 1) == "I am rank 1\n"


def test_where_it_died_the_rank_that_failed_first_speaks(run):
    now = time.time()
    write(run, 7, 0, "Traceback (most recent call last):\nConnection closed by peer\n", at=now)
    write(run, 7, 1, "all is well here\n", at=now + 2)
    write(run, 7, 2, "Traceback (most recent call last):\nCUDA out of memory\n", at=now - 3)
    run.record("gave_up", job_id="7", message="three starts")
    assert "CUDA out of memory" in shown(run)


def test_the_newest_job_is_shown_and_an_array_has_its_logs_elsewhere(run, tmp_path):
    write(run, 7, 0, "old\n")
    grid = tmp_path / "demo" / "grid_logs"
    grid.mkdir()
    (grid / "9_1_0_log.out").write_text("mine\n")
    (grid / "9_2_0_log.out").write_text("another run's\n")
    run.record("queued", job_id="9_1", logs=str(grid))
    assert shown(run) == "mine\n"
    assert [log.job for log in rank_logs(run)] == ["7", "9_1"]


def test_following_goes_on_through_a_requeue_and_ends_with_the_run(run):
    write(run, 7, 0, "first\n")
    words = [sys.executable, "monitoring/logs.py", str(run.path), "--follow"]
    viewer = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert viewer.stdout.readline() == "first\n"
    write(run, 7, 0, "after the requeue\n")
    assert viewer.stdout.readline() == "after the requeue\n"
    run.record("queued", job_id="8", logs=str(run.logs))
    write(run, 8, 0, "the next job\n")
    run.record("end", attempt=2, reason="complete", step=10)
    assert viewer.communicate(timeout=30)[0] == "the next job\n" and viewer.returncode == 0


def test_following_ends_where_a_job_is_taken_out_of_the_queue_and_not_where_one_saves_first(run):
    write(run, 7, 0, "all\n")
    assert not is_over(run)
    run.record("cancelled", job_id="7", pending=False)
    assert not is_over(run), "it saves, and says how it ended"
    run.record("cancelled", job_id="7", pending=True)
    assert shown(run, "--follow") == "all\n"


def test_what_the_watch_says_last_does_not_keep_a_follower_waiting(run):
    write(run, 7, 0, "all\n")
    run.record("end", attempt=1, reason="failed", step=3, gained=3, message="the loss is nan at step 3")
    run.record("warning", attempt=1, what="disk", message="the disk is filling")  # by a thread, a moment later
    assert is_over(run)


def test_mistakes_are_one_sentence(run):
    done = command("monitoring/logs.py", run.path)
    assert done.returncode == 2 and "has no logs yet" in done.stderr
    write(run, 7, 0, "x\n")
    with pytest.raises(UserError, match="rank 5 wrote nothing in job 7; there are logs of rank 0"):
        choose(rank_logs(run), 5, died=False)
