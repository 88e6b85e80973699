"""What SLURM says of everybody's jobs, asked at most once a minute by all who look at one runs root.

The answer lies beside the runs; whoever finds it too old asks again, under a lock, and the others take what it got. One ``squeue`` for
all jobs, and, only for runs that ended without a word, one ``sacct``, which may be switched off. A controller that does not answer is
asked once a minute, too.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.files import read_json, write_json

SECONDS = 60.0  # between two questions
PATIENCE = 20.0  # seconds for an answer
ANSWER = ".slurm.json"
LIVING = {
    "PENDING", "RUNNING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SIGNALING", "STAGE_OUT",
    "COMPLETING",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One job or array task. ``starts``: when SLURM thinks that a pending one begins; ``ends``: when a running one's time is over."""

    state: str
    reason: str = ""
    starts: str = ""
    ends: str = ""
    nodes: str = ""
    exit_code: str = ""

    @property
    def lives(self) -> bool:
        return self.state in LIVING


@dataclass(frozen=True)
class Answer:
    """What SLURM said ``age`` seconds ago. ``problem``: why there is nothing newer, in words; empty where all is well."""

    jobs: dict[str, Job]
    age: float = 0.0
    problem: str = ""

    def get(self, job: str | None) -> Job | None:
        return self.jobs.get(job) if job else None


def ask(root: Path, owners: Collection[int], ended: Collection[str], *, now: float | None = None) -> Answer | None:
    """The jobs of the users ``owners``, and how the jobs ``ended`` are accounted for; None where there is no SLURM.

    Args:
        root: the runs root, where the answer is kept for everybody.
        owners: user ids.
        ended: ids of jobs of which ``squeue`` may know nothing any more.
    """
    if shutil.which("squeue") is None or not owners:
        return None
    file = _shelf(root) / ANSWER
    kept = read_json(file)
    if _is_fresh(kept, now):
        return _answer(kept, now)
    with one_at_a_time(file.with_suffix(".lock")):
        kept = read_json(file)  # somebody may have asked while this one waited
        if not _is_fresh(kept, now):
            kept = _question(owners, ended, kept if isinstance(kept, dict) else {}, time.time() if now is None else now)
            write_json(file, kept, durable=False)
    return _answer(kept, now)


def accounted(jobs: Collection[str]) -> dict[str, Job]:
    """How jobs have ended, by sacct; empty where there is no accounting."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    form = "JobID,State,ExitCode,NodeList,Reason"
    text, _ = _run("sacct", "-n", "-X", "-P", "-o", form, "-j", ",".join(sorted(jobs)))
    rows = [line.split("|") for line in text.splitlines()]
    return {
        job: Job(state.partition(" ")[0], "" if why == "None" else why, nodes=nodes, exit_code=code)
        for job, state, code, nodes, why in (row for row in rows if len(row) == 5)
    }


def _question(owners: Collection[int], ended: Collection[str], kept: dict[str, Any], now: float) -> dict[str, Any]:
    """Ask; where squeue fails, what it said before stays, with its time."""
    users = ",".join(sorted(_user(owner) for owner in owners))
    text, problem = _run("squeue", "-h", "-r", "-u", users, "-o", "%i|%T|%r|%S|%e|%N")
    if problem:
        return {"time": 0.0, "jobs": {}, **kept, "asked": now, "problem": problem}
    rows = [line.split("|") for line in text.splitlines()]
    jobs = {
        job: Job(state, _told(why), _told(starts), _told(ends), nodes)
        for job, state, why, starts, ends, nodes in (row for row in rows if len(row) == 6)
    }
    gone = {job for job in ended if job not in jobs}
    known = accounted(gone)
    return {
        "asked": now,
        "time": now,
        "problem": "",
        "jobs": {name: asdict(job) for name, job in {**known, **jobs}.items()},
    }


def _told(word: str) -> str:
    """A field of squeue's, empty where it says that there is nothing to say."""
    return "" if word in ("None", "N/A") else word


def _answer(kept: dict[str, Any], now: float | None) -> Answer:
    jobs = {name: Job(**job) for name, job in kept["jobs"].items()}
    return Answer(jobs, max(0.0, (time.time() if now is None else now) - kept["time"]), kept["problem"])


def _is_fresh(kept: Any, now: float | None) -> bool:
    """Whether an answer is younger than a minute; one from the future was written by a clock that is wrong."""
    return isinstance(kept, dict) and 0 <= (time.time() if now is None else now) - kept.get("asked", 0) < SECONDS


def _run(*words: str) -> tuple[str, str]:
    """(what a command of SLURM's printed, why it failed)."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "", f"{words[0]} did not answer within {PATIENCE:.0f} s"
    except OSError as error:
        return "", f"{words[0]}: {error.strerror}"
    said = done.stderr.strip().rpartition("\n")[2].rpartition(": ")[2]  # the last line's end says what it comes to
    return done.stdout, f"{words[0]}: {said or f'exit code {done.returncode}'}" if done.returncode else ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # of a user database that this host does not have
        return str(uid)


def _shelf(root: Path) -> Path:
    """Where the answer is kept: with the runs, or where those may only be read, with this user's other caches."""
    if os.access(root, os.W_OK):
        return root
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = caches / "slurmphony" / str(root).strip("/").replace("/", "%")
    own.mkdir(parents=True, exist_ok=True)
    return own


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file within the block; on a file system that knows no locks, everybody."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        yield
