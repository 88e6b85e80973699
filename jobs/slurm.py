"""Cluster profile + run -> submitit parameters -> sbatch script. submitit writes the script; we decide what stands in it."""

from __future__ import annotations

import contextlib
import io
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    ``wait_for``: the job that must succeed before. ``exclude``: nodes that it must not get.
    """

    nodes: int
    gpus: int
    time: str | None = None
    wait_for: str | None = None
    exclude: tuple[str, ...] = ()


class _Planner(SlurmExecutor):
    """Writes scripts on a machine without SLURM, too."""

    @classmethod
    def affinity(cls) -> int:
        return 1


@dataclass(frozen=True)
class Batch:
    """The runs of one submission: one, or the tasks of an array, with the words for them in the script."""

    runs: tuple[RunFolder, ...]

    @property
    def is_array(self) -> bool:
        return len(self.runs) > 1

    @property
    def logs(self) -> Path:
        """Where submitit keeps its files: an array has one place for all its tasks."""
        first = self.runs[0]
        return first.path.parent / "grid_logs" if self.is_array else first.logs

    @property
    def job_name(self) -> str:
        return self.runs[0].path.parent.name

    @property
    def comment(self) -> str:
        return (
            f"slurmphony {self.job_name}: {len(self.runs)} runs" if self.is_array else f"slurmphony {self.runs[0].name}"
        )

    @property
    def find_run(self) -> str:
        """The shell line that sets RUN to the run folder; a task of an array takes the one of its number."""
        if not self.is_array:
            return f"RUN={shlex.quote(str(self.runs[0].path))}"
        return f'RUNS=({shlex.join(str(run.path) for run in self.runs)}); RUN="${{RUNS[$SLURM_ARRAY_TASK_ID]}}"'


def parameters(batch: Batch, cluster: Cluster, request: Request) -> dict[str, Any]:
    """submitit's parameters. One task a GPU, one srun inside one sbatch; what srun no longer inherits is said to it again."""
    gres = f"gpu:{cluster.gpu_type}:{request.gpus}" if cluster.gpu_type else f"gpu:{request.gpus}"
    limit = minutes(request.time or cluster.time)
    optional = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mem_per_gpu": cluster.mem_per_gpu,
    }
    additional: dict[str, Any] = {"requeue": True}
    if cluster.exclusive:
        additional["exclusive"] = True
    if request.exclude:
        additional["exclude"] = ",".join(request.exclude)
    if request.wait_for:  # a link that failed must not leave the next one pending for ever
        additional |= {"dependency": f"afterok:{request.wait_for}", "kill-on-invalid-dep": "yes"}
    return {
        "job_name": batch.job_name,
        "comment": batch.comment,
        "time": limit,
        "nodes": request.nodes,
        "ntasks_per_node": request.gpus,
        "cpus_per_task": cluster.cpus_per_gpu,
        "gres": gres,
        "array_parallelism": len(batch.runs),
        "signal_delay_s": min(cluster.signal_seconds, limit * 60 // 4),  # a short job is not warned at its start
        "setup": [
            batch.find_run,
            *setup_lines('"$RUN/code"', cluster),
            'export TORCH_NCCL_DEBUG_INFO_TEMP_FILE="$RUN/logs/nccl_trace_rank_"',
        ],
        "teardown": teardown_lines(),
        # Every rank sees all GPUs of its node and takes the one of its number, whatever a site binds by default.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_gpu}", "--gpu-bind=none"],
        "wckey": None,
        "additional_parameters": additional,
        **{key: value for key, value in optional.items() if value},
    }


def setup_lines(code: str, cluster: Cluster) -> list[str]:
    """Shell lines before srun; values are quoted, the profile's own ``setup`` lines are the user's words.

    The snapshot comes first on the path, before what a module may have put there; the rest gives way to what the person who launches
    has exported.

    Args:
        code: the snapshot's folder as a shell word, quoted.
    """
    defaults = {"OMP_NUM_THREADS": str(max(1, cluster.cpus_per_gpu // 2)), **network(cluster), **cluster.environment}
    if cluster.weights:
        defaults["SLURMPHONY_WEIGHTS"] = cluster.weights
    return [
        *cluster.setup,
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1",
        *(f"export {name}=${{{name}:-{shlex.quote(value)}}}" for name, value in defaults.items()),
    ]


def network(cluster: Cluster) -> dict[str, str]:
    """How NCCL and gloo talk, and that NCCL leaves behind the last collectives of every rank when it times out (``pipeline.flight``)."""
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if cluster.interface else ()
    return {
        **{name: str(cluster.interface) for name in names},
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


def teardown_lines() -> list[str]:
    """Shell lines after srun: a run that did not end by agreement decides whether it comes back."""
    python = shlex.quote(sys.executable)
    return ["code=$?", f'[ "$code" = 0 ] || {python} -m jobs.requeue "$RUN" "$code"', 'exit "$code"']


def script(runs: Sequence[RunFolder], cluster: Cluster, request: Request) -> str:
    """The sbatch script that ``submit`` would queue; only the file that submitit pickles the job into is not named yet."""
    batch = Batch(tuple(runs))
    executor = _Planner(folder=batch.logs, python=shlex.quote(sys.executable))
    executor.update_parameters(**parameters(batch, cluster, request))
    extra = {"map_count": len(runs)} if batch.is_array else {}
    executor.parameters.update(extra)
    return executor._make_submission_file_text(executor._submitit_command_str, "JOB")


def trial(runs: Sequence[RunFolder], name: str, cluster: Cluster, request: Request) -> list[str]:
    """What sbatch would refuse, in a sentence (``sbatch --test-only``); empty where it would queue the job."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script(runs, cluster, replace(request, wait_for=None)))
        file.flush()
        done = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True)
    return [_refusal(done.stderr, name, cluster, request)] if done.returncode else []


def submit(runs: Sequence[RunFolder], name: str, cluster: Cluster, request: Request) -> list[str]:
    """Queue the runs with the profile ``name``, several as one array; returns the job ids.

    UserError says in one sentence what sbatch refused.
    """
    batch = Batch(tuple(runs))
    executor = submitit.SlurmExecutor(folder=batch.logs, python=shlex.quote(sys.executable))
    executor.update_parameters(**parameters(batch, cluster, request))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats sbatch's words; ours follow
            if not batch.is_array:
                return [executor.submit(TrainJob(str(runs[0].path))).job_id]
            with executor.batch():
                jobs = [executor.submit(TrainJob(str(run.path))) for run in runs]
            return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(_refusal(str(error), name, cluster, request)) from None


def _refusal(stderr: str, name: str, cluster: Cluster, request: Request) -> str:
    return explain(stderr, name, cluster, request.nodes, request.gpus, request.time or cluster.time)
