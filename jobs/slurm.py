"""Cluster profile + run -> submitit parameters -> sbatch script. submitit writes the script; we decide what stands in it."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from jobs.clusters import Cluster, minutes
from jobs.slurm_errors import explain
from jobs.train_job import TrainJob
from pipeline.errors import UserError
from pipeline.runs import RunFolder


@dataclass(frozen=True)
class Request:
    """What is asked of SLURM for one run: ``nodes`` of ``gpus`` each, for ``time`` (H:MM:SS; None: the profile's).

    ``wait_for``: the job that must succeed before.
    """

    nodes: int
    gpus: int
    time: str | None = None
    wait_for: str | None = None


class _Planner(SlurmExecutor):
    """Writes scripts on a machine without SLURM, too."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def parameters(run: RunFolder, cluster: Cluster, request: Request) -> dict[str, Any]:
    """submitit's parameters. One task a GPU, one srun inside one sbatch; what srun no longer inherits is said to it again."""
    gres = f"gpu:{cluster.gpu_type}:{request.gpus}" if cluster.gpu_type else f"gpu:{request.gpus}"
    memory = {"mem_per_gpu": cluster.mem_per_gpu} if cluster.mem_per_gpu else {}
    optional = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
    }
    additional: dict[str, Any] = {"requeue": True}
    if cluster.exclusive:
        additional["exclusive"] = True
    if request.wait_for:  # a link that failed must not leave the next one pending for ever
        additional |= {"dependency": f"afterok:{request.wait_for}", "kill-on-invalid-dep": "yes"}
    return {
        "job_name": run.path.parent.name,
        "comment": f"slurmphony {run.name}",
        "time": minutes(request.time or cluster.time),
        "nodes": request.nodes,
        "ntasks_per_node": request.gpus,
        "cpus_per_task": cluster.cpus_per_gpu,
        "gres": gres,
        "signal_delay_s": cluster.signal_seconds,
        "setup": setup_lines(run.code, cluster),
        "teardown": teardown_lines(run),
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_gpu}"],
        "wckey": None,
        "additional_parameters": additional,
        **memory,
        **{key: value for key, value in optional.items() if value},
    }


def setup_lines(code: Path, cluster: Cluster) -> list[str]:
    """Shell lines before srun for the snapshot ``code``; values are quoted, the profile's own ``setup`` lines are the user's words."""
    exports = {
        "PYTHONPATH": str(code),
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(max(1, cluster.cpus_per_gpu // 2)),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        **({"SLURMPHONY_WEIGHTS": cluster.weights} if cluster.weights else {}),
        **cluster.environment,
    }
    return [*cluster.setup, *(f"export {name}={shlex.quote(value)}" for name, value in exports.items())]


def teardown_lines(run: RunFolder) -> list[str]:
    """Shell lines after srun: a run that did not end by agreement decides whether it comes back."""
    python = shlex.quote(sys.executable)
    return [
        "code=$?",
        f'[ "$code" = 0 ] || {python} -m jobs.requeue {shlex.quote(str(run.path))} "$code"',
        'exit "$code"',
    ]


def script(run: RunFolder, cluster: Cluster, request: Request) -> str:
    """The sbatch script that ``submit`` would queue; only the file that submitit pickles the job into is not named yet."""
    executor = _Planner(folder=run.logs, python=shlex.quote(sys.executable))
    executor.update_parameters(**parameters(run, cluster, request))
    return executor._make_submission_file_text(executor._submitit_command_str, "JOB")


def submit(run: RunFolder, name: str, cluster: Cluster, request: Request) -> str:
    """Queue the run with the profile ``name``; returns the job id. UserError says in one sentence what sbatch refused."""
    executor = submitit.SlurmExecutor(folder=run.logs, python=shlex.quote(sys.executable))
    executor.update_parameters(**parameters(run, cluster, request))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats sbatch's words; ours follow
            return executor.submit(TrainJob(str(run.path))).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        refusal = explain(str(error), name, cluster, request.nodes, request.gpus, request.time or cluster.time)
        raise UserError(refusal) from None
