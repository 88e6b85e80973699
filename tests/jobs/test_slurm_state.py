"""What squeue's answers mean: a job that has ended, one that lives, and nobody there. (A real silence: tests/jobs/test_slurm.py.)"""

import os

import pytest

from jobs.slurm_state import living_job
from jobs.start import attach
from pipeline.errors import UserError
from pipeline.runs import RunFolder

SILENT = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "demo" / "0123abcd")
    run.create()
    run.record("queued", job_id="7")
    return run


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Give squeue a voice: a line of shell."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "squeue"
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def says(line):
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    return says


def test_a_living_job_and_one_that_has_ended(run, squeue):
    squeue("echo 'PENDING|Resources'")
    assert living_job(run) == ("7", "PENDING (Resources)")
    for ended in (
        "exit 0",
        'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1',
        "echo 'COMPLETED|None'",
    ):
        squeue(ended)
        assert living_job(run) is None


def test_silence_is_not_taken_for_the_end_of_a_job(run, squeue):
    squeue(SILENT)
    with pytest.raises(
        UserError, match=r"^SLURM's controller does not answer; try `sinfo`, and type the same again\.$"
    ):
        living_job(run)


def test_who_waits_for_a_run_waits_through_a_silence(run, squeue, tmp_path, monkeypatch, capsys):
    """Silent, silent, then the job is gone."""
    monkeypatch.setattr("jobs.start.ATTACHED_SECONDS", 0.01)
    squeue(f'echo x >> {tmp_path}/calls; [ "$(wc -l < {tmp_path}/calls)" -gt 2 ] && exit 0; {SILENT}')
    run.record("end", attempt=1, reason="complete", step=5)
    assert attach(run) == 0
    assert capsys.readouterr().err.count("does not answer") == 1
