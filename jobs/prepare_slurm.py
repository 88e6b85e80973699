"""``prepare.py --cluster NAME``: a preparation's jobs queued, found again, and added to.

    <data root>/.prepare/<dataset's folder>/
      attempt.json     which jobs the last command queued, and what they share
      failures.jsonl   jobs that ended with a sentence
      logs/ code/      submitit's files; the code the jobs run, frozen

Never imports torch: it runs on a login node.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from data_prep.plan import code_version
from data_prep.stage import Stage
from jobs import snapshot
from jobs.clusters import Cluster, load_cluster
from jobs.configs import ROOT, load_link
from jobs.prepare_job import FAILURES, PrepareJob, Role
from jobs.side_jobs import SideJob, parameters, queue_launch
from jobs.slurm_errors import explain
from jobs.slurm_state import squeue
from monitoring.slurm_jobs import LIVING
from pipeline.errors import UserError
from pipeline.files import read_json, read_lines, write_json
from pipeline.runs import runs_root

ATTEMPT = "attempt.json"
States = defaultdict[str, Counter[str]]
LOOK = 2.0  # seconds between two looks at a job that is waited for


@dataclass(frozen=True)
class Request:
    """What was typed. ``tasks`` helpers of ``workers`` processes each (None: the profile's CPUs of a GPU)."""

    stage: Stage
    source: Path
    folder: Path
    cluster: str
    tasks: int
    workers: int | None
    time: str | None
    max_failures: float

    @property
    def records(self) -> Path:
        return records_of(self.folder)


@dataclass
class Attempt:
    """Jobs that prepare one folder together. ``helpers``: job ids, the array's first; ``last``: who completes it."""

    attempt: str
    work: str  # what is made of which source: whoever joins must mean the same
    helpers: list[str]
    last: str


def data_of(cluster: str) -> str | None:
    """The data root that a profile names."""
    return load_cluster(cluster).data


def records_of(folder: Path) -> Path:
    return folder.parent / ".prepare" / folder.name


def send(request: Request) -> tuple[str, list[str]]:
    """Queue a preparation, or add to one that lives; the id of the job that completes it, and lines for the person.

    Where fewer helpers live than ``request.tasks``, the difference is sent after them. Raises UserError for what sbatch refuses.
    """
    cluster = load_cluster(request.cluster)
    if cluster.scheduler != "slurm":
        raise UserError(f"the cluster '{request.cluster}' has no scheduler; leave --cluster out to prepare here.")
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on the PATH; type this on a login node, or leave --cluster out.")
    living = living_attempt(request.folder)
    if living is None:
        return _begin(request, cluster)
    attempt, states = living
    if attempt.work != _work(request):
        raise UserError(
            f"job {attempt.last} is preparing {request.folder} from another source, or with another recipe or code; "
            f"wait for it, or end it: scancel {' '.join([*attempt.helpers, attempt.last])}"
        )
    said = [_standing(attempt, states)]
    more = request.tasks - sum(sum(states[job].values()) for job in attempt.helpers)
    if more > 0:
        job = _queue(request, cluster, attempt.attempt, "more", more)
        attempt.helpers.append(job)
        write_json(request.records / ATTEMPT, asdict(attempt))
        said.append(f"{more} more task(s) sent to help, as job {job}.")
    return attempt.last, said


def launch_after(request: Request, job: str, names: list[str]) -> str:
    """Queue a small job that launches the chain ``names`` once ``job`` has succeeded; its id."""
    for name in names:
        load_link(name)  # a mistake is told now, not in a log tomorrow
    words = [names[0], *(word for name in names[1:] for word in ("--then", name)), "--cluster", request.cluster]
    runs = runs_root(None, load_cluster(request.cluster).runs)
    words += ["--data", str(request.folder.parent), "--runs", str(runs)]
    return queue_launch(words, _side_job(request, 1, f"afterok:{job}"))


def living_attempt(folder: Path) -> tuple[Attempt, States] | None:
    """The jobs that are preparing ``folder``, and how many tasks of each are in which state; None where none lives.

    Its ``last`` is what a job that needs the dataset waits for, ``afterok``.
    """
    tree = read_json(records_of(folder) / ATTEMPT)
    if tree is None or shutil.which("squeue") is None:
        return None
    attempt, states = Attempt(**tree), _states(folder)
    return (attempt, states) if states[attempt.last] else None


def follow(folder: Path) -> Iterator[str]:
    """A line whenever something has changed, until no job prepares ``folder`` any more."""
    told = ""
    while living := living_attempt(folder):
        line = _standing(*living)
        if line != told:
            yield line
        told = line
        time.sleep(LOOK)


def describe(folder: Path) -> list[str]:
    """What the queue and the jobs' own last words say of a preparation; empty where none was queued."""
    if not (records_of(folder) / ATTEMPT).is_file():
        return []
    try:
        living = living_attempt(folder)
        lines = [_standing(*living) if living else "no job of it is queued or running"]
    except UserError as error:
        lines = [str(error)]
    failures, _ = read_lines(records_of(folder) / FAILURES)
    return lines + [f"job {failure['job']} failed: {failure['message']}" for failure in failures]


def _begin(request: Request, cluster: Cluster) -> tuple[str, list[str]]:
    records, name = request.records, secrets.token_hex(4)
    try:
        (records / "logs").mkdir(parents=True, exist_ok=True)
        (records / FAILURES).unlink(missing_ok=True)
        snapshot.take(ROOT, records / "code")
    except OSError as error:
        raise UserError(f"{records} cannot be made: {error.strerror}; choose another data root with --out.") from error
    helpers = _queue(request, cluster, name, "first", request.tasks)
    try:
        last = _queue(request, cluster, name, "last", 1, after=f"afterany:{helpers}")  # it completes what they left
    except UserError:
        subprocess.run(["scancel", helpers], capture_output=True)
        raise
    write_json(records / ATTEMPT, asdict(Attempt(name, _work(request), [helpers], last)))
    return last, [f"{request.tasks} task(s) queued as job {helpers}, completed by job {last}; logs: {records / 'logs'}"]


def _queue(request: Request, cluster: Cluster, attempt: str, role: Role, tasks: int, after: str | None = None) -> str:
    """Queue ``tasks`` tasks of one role; the job's id."""
    workers = request.workers or cluster.cpus_per_gpu
    job = PrepareJob(
        request.stage, request.source, request.folder, request.records, workers, request.max_failures, attempt, role
    )
    executor = submitit.SlurmExecutor(folder=request.records / "logs", python=shlex.quote(sys.executable))
    executor.update_parameters(**parameters(_side_job(request, workers, after), cluster))
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # submitit repeats sbatch's words
            queued = [executor.submit(job) for _ in range(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(_refusal(str(error), request, cluster, workers)) from None
    return str(queued[0].job_id).partition("_")[0]


def _side_job(request: Request, workers: int, after: str | None) -> SideJob:
    """One task of ``workers`` CPUs; a GPU only for a codec that has weights, which is slow without."""
    on_gpu = request.stage.codec_hash is not None
    name, about = _job_name(request.folder), str(request.folder)
    return SideJob(name, about, request.records, request.cluster, request.time, workers, on_gpu, after)


def _refusal(stderr: str, request: Request, cluster: Cluster, workers: int) -> str:
    limit = request.time or cluster.time
    if "job array" in stderr.lower():
        return f"the cluster takes no array of {request.tasks} tasks (`scontrol show config` says MaxArraySize); use fewer --tasks."
    if "node configuration" in stderr.lower() or "processors" in stderr.lower():
        return f"no node has {workers} CPUs for one task; use fewer --workers, or another cpu_partition in the profile."
    return explain(stderr, request.cluster, cluster, 1, 0, limit)


def _work(request: Request) -> str:
    """What the jobs make, of what: equal where two commands mean the same."""
    stage = request.stage
    return repr((str(request.source), stage.settings(), stage.codec_hash, code_version(stage.code)))


def _states(folder: Path) -> States:
    """By job id (an array's own), how many of ``folder``'s tasks are in which living state; UserError where nobody answers."""
    told = squeue("-r", "--me", "-n", _job_name(folder), "-o", "%F|%T")
    states: States = defaultdict(Counter)  # a job that squeue does not name has no tasks
    for job, _, state in (line.partition("|") for line in told.split()):
        if state in LIVING:
            states[job][state] += 1
    return states


def _job_name(folder: Path) -> str:
    return f"prepare_{folder.name}"


def _standing(attempt: Attempt, states: States) -> str:
    helpers = sum((states[job] for job in attempt.helpers), Counter[str]())
    words = ", ".join(f"{count} {state.lower()}" for state, count in sorted(helpers.items())) or "none left"
    (last,) = states[attempt.last] or ["gone"]
    return (
        f"tasks of job {' and '.join(attempt.helpers)}: {words}; job {attempt.last}, which completes it: {last.lower()}"
    )
