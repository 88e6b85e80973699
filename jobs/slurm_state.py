"""Where a queued run stands, asked of squeue alone: accounting may be off."""

from __future__ import annotations

import os
import shutil
import subprocess

from pipeline.runs import RunFolder

LIVING = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "COMPLETING",
}


def last_job(run: RunFolder) -> str | None:
    """The job id the run was last queued as, or None."""
    return next((e["job_id"] for e in reversed(run.history()) if e["event"] == "queued"), None)


def living_job(run: RunFolder) -> tuple[str, str] | None:
    """(job id, what squeue says: ``PENDING (Resources)``) where the run's job is still known to SLURM; None where it has ended.

    The job that asks does not count: a chained job may look at its own run.
    """
    job = last_job(run)
    if job is None or job == os.environ.get("SLURM_JOB_ID") or shutil.which("squeue") is None:
        return None
    done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T|%r"], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():  # an id that SLURM has forgotten is an error there
        return None
    state, _, reason = done.stdout.splitlines()[0].partition("|")
    if state not in LIVING:
        return None
    return job, f"{state} ({reason})" if reason not in ("None", "") else state
