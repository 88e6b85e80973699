"""Where jobs and nodes stand, asked of squeue and scontrol alone: accounting may be off."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import datetime

from monitoring.slurm_jobs import LIVING
from pipeline.errors import UserError
from pipeline.runs import RunFolder

FORGOTTEN = "Invalid job id"  # squeue's word for a job that ended some minutes ago
ANSWER = 60.0  # seconds that a busy controller may take
BROKEN = re.compile(r"DOWN|FAIL|NOT_RESPONDING|POWERED_DOWN|\*")  # states of a node that has left


def last_job(run: RunFolder) -> str | None:
    """The job id the run was last queued as, or None."""
    return next((e["job_id"] for e in reversed(run.history()) if e["event"] == "queued"), None)


def living_job(run: RunFolder) -> tuple[str, str] | None:
    """(job id, what squeue says: ``PENDING (Resources)``) where the run's job is still known to SLURM; None where it has ended.

    The job that asks does not count: a chained job may look at its own run. UserError where the controller does not answer: a job
    that is taken for ended would be queued twice.
    """
    job = last_job(run)
    if job is None or job == own_job() or shutil.which("squeue") is None:
        return None
    told = squeue("-j", job, "-o", "%T|%r")
    if not told.strip():
        return None
    state, _, reason = told.splitlines()[0].partition("|")
    if state not in LIVING:
        return None
    return job, f"{state} ({reason})" if reason not in ("None", "") else state


def squeue(*words: str) -> str:
    """What ``squeue -h`` with ``words`` says, nothing of a job that SLURM has forgotten; UserError where the controller is silent."""
    done = _ask("squeue", "-h", *words)
    if done.returncode == 0:
        return done.stdout
    if FORGOTTEN in done.stderr:
        return ""
    raise UserError("SLURM's controller does not answer; try `sinfo`, and type the same again.")


def own_job() -> str | None:
    """The id of the job this process is in; an array's task is named as squeue names it."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def job_facts(job: str) -> dict[str, str]:
    """What ``scontrol show job`` says, by field; empty where the job is not known or nobody answers."""
    done = _ask("scontrol", "-o", "show", "job", job)
    return dict(re.findall(r"([\w:/]+)=(\S*)", done.stdout)) if done.returncode == 0 else {}


def end_of(facts: dict[str, str]) -> float | None:
    """When a running job's time is over, in seconds since the epoch; None where it has no limit."""
    try:
        return datetime.fromisoformat(facts["EndTime"]).timestamp()
    except (KeyError, ValueError):  # "Unknown": no limit
        return None


def host_names(nodes: str) -> tuple[str, ...]:
    """``n[01-03]`` as names."""
    done = _ask("scontrol", "show", "hostnames", nodes)
    return tuple(done.stdout.split()) if done.returncode == 0 else ()


def broken_nodes(names: tuple[str, ...]) -> dict[str, str]:
    """Of these nodes the ones that have gone down or do not answer, with their state."""
    if not names:
        return {}
    done = _ask("scontrol", "-o", "show", "node", ",".join(names))
    found = re.findall(r"NodeName=(\S+).*? State=(\S+)", done.stdout)
    return {name: state for name, state in found if BROKEN.search(state)}


def usable_nodes(partition: str | None) -> set[str]:
    """Names of the nodes of a partition (None: of all) that may get jobs."""
    done = _ask("sinfo", "-h", "-N", "-o", "%N %T", *(("-p", partition) if partition else ()))
    rows = [line.split() for line in done.stdout.splitlines()]
    return {name for name, state in rows if not BROKEN.search(state.upper()) and "drain" not in state}


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands; where it is missing or hangs, that is a failed answer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=ANSWER)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
