"""Jobs beside a training, of one task each: a preparation's helpers, pairs that a run draws, a launch whose turn comes later."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from jobs.clusters import Cluster, load_cluster, minutes
from jobs.prepare_job import LaunchJob
from jobs.slurm import setup_lines
from jobs.slurm_errors import explain
from jobs.slurm_state import LIVING, squeue
from pipeline.errors import UserError


@dataclass(frozen=True)
class SideJob:
    """``name`` and ``about`` are what the queue shows. ``records`` holds ``code/``, frozen, and takes ``logs/``; ``after``: a
    dependency, as sbatch takes it."""

    name: str
    about: str
    records: Path
    cluster: str
    time: str | None = None  # H:MM:SS; None: the profile's
    workers: int = 1
    on_gpu: bool = False
    after: str | None = None


def parameters(job: SideJob, cluster: Cluster) -> dict[str, Any]:
    """submitit's parameters: one task of ``workers`` CPUs, and one GPU where it is asked for."""
    cpu_partition = None if job.on_gpu else cluster.cpu_partition
    gpu = f"gpu:{cluster.gpu_type}:1" if cluster.gpu_type else "gpu:1"
    optional = {
        "gres": gpu if job.on_gpu else None,
        "partition": cpu_partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": None if cpu_partition else cluster.constraint,
        "mem_per_cpu": cluster.mem_per_cpu,
    }
    additional: dict[str, Any] = {"requeue": True}
    if job.after:
        additional |= {"dependency": job.after, "kill-on-invalid-dep": "yes"}
    return {
        "job_name": job.name,
        "comment": f"slurmphony {job.about}",
        "time": minutes(job.time or cluster.time),
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": job.workers,
        "signal_delay_s": cluster.signal_seconds,
        "setup": setup_lines(shlex.quote(str(job.records / "code")), cluster),
        "srun_args": [f"--cpus-per-task={job.workers}"],
        "wckey": None,
        "additional_parameters": additional,
        **{key: value for key, value in optional.items() if value},
    }


def queue(work: Callable[[], Any], job: SideJob) -> str:
    """Queue ``work``; its id. UserError for what sbatch refuses."""
    cluster = load_cluster(job.cluster)
    executor = submitit.SlurmExecutor(folder=job.records / "logs", python=shlex.quote(sys.executable))
    executor.update_parameters(**parameters(job, cluster))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats sbatch's words
            return str(executor.submit(work).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        gpus = int(job.on_gpu)
        raise UserError(explain(str(error), job.cluster, cluster, 1, gpus, job.time or cluster.time)) from None


def queue_launch(words: list[str], job: SideJob) -> str:
    """Queue a small job that types ``launch.py`` with ``words`` when its turn comes; its id."""
    return queue(LaunchJob(job.records / "code", tuple(words)), job)


def living(name: str) -> str | None:
    """The id of our job of that name that is queued or running, or None."""
    for line in squeue("--me", "-n", name, "-o", "%i|%T").split():
        number, _, state = line.partition("|")
        if state in LIVING:
            return number
    return None
