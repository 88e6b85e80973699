"""What a preparation runs on SLURM: an array of helpers that claim shards, and one job after them that completes the dataset.

Nothing is dealt out: any number of helpers may come, later too, and any may die. So the last job starts when the helpers have
ended in whatever way, builds what they left, and succeeds exactly where the dataset is whole: it is what other jobs wait for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from data_prep.stage import Stage
from pipeline.errors import RunFailed, UserError
from pipeline.files import append_line

FAILURES = "failures.jsonl"  # beside the logs; a line for each job that ended with a sentence
Role = Literal["first", "more", "last"]
WAIT_TO_BE_ENDED = 120.0  # seconds; SLURM ends a requeued job within its KillWait


@dataclass(frozen=True)
class PrepareJob:
    """One task's share. ``records``: where logs and failures go.

    ``role``: "first" of an attempt's helpers, one "more" that was sent after them, or the "last" job.
    """

    stage: Stage
    source: Path
    folder: Path
    records: Path
    workers: int
    max_failures: float
    attempt: str
    role: Role

    def __call__(self) -> str:
        try:
            with comes_back_at_the_limit(self.folder):
                return self._work()
        except (RunFailed, UserError, OSError) as error:
            job = os.environ.get("SLURM_JOB_ID", "")
            append_line(self.records / FAILURES, {"job": job, "role": self.role, "message": str(error)})
            print(f"failed: {error}", file=sys.stderr, flush=True)
            sys.exit(1)

    def _work(self) -> str:
        from data_prep.commits import WORK
        from data_prep.engine import assist, complete
        from data_prep.finish import finish

        if self.role == "more" and not (self.folder / WORK).exists():
            return "done before this one began"
        common = (self.stage, self.source, self.folder, self.workers, self.max_failures, self.attempt)
        if self.role != "last":
            return f"{assist(*common)} shards were missing when this one began"
        plan, _ = complete(*common)
        return f"complete, {len(finish(self.stage, plan, self.folder))} inputs quarantined"


@dataclass(frozen=True)
class LaunchJob:
    """Types ``launch.py`` when its turn comes, with the code that was frozen when it was queued.

    A run's identity holds its data's hash, so it cannot be known, nor its folder made, before the data is there.
    """

    code: Path
    words: tuple[str, ...]

    def __call__(self) -> None:
        # What SLURM told this small job must not reach the large one.
        env = {
            k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM", "SBATCH", "SRUN"))
        }
        command = [sys.executable, str(self.code / "jobs" / "launch.py"), *self.words]
        code = subprocess.run(command, cwd=self.code, env=env).returncode
        if code:
            sys.exit(code)


class _Limit(BaseException):
    """The warning that SLURM sends before the time limit. Everything on disk stands a kill, so it may come anywhere."""


@contextmanager
def comes_back_at_the_limit(folder: Path) -> Iterator[None]:
    """At the warning (SIGUSR2) this job goes back into the queue, unless it got nowhere; at SIGTERM it ends at once."""

    def warned(number: int, frame: FrameType | None) -> None:
        raise _Limit

    before = _progress(folder)
    signal.signal(signal.SIGUSR2, warned)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    except _Limit:
        if _progress(folder) == before:
            raise RunFailed(
                "the time limit came before anything was finished; allow more time with --time, or more --workers."
            ) from None
        job = os.environ["SLURM_JOB_ID"]
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(f"scontrol requeue {job} failed: {done.stderr.strip()}; prepare again by hand.") from None
        time.sleep(WAIT_TO_BE_ENDED)
        raise RunFailed(f"job {job} was requeued and nobody ended it.") from None
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


def _progress(folder: Path) -> set[str]:
    """What grows while a dataset is prepared, whoever does it: hashed chunks and committed shards."""
    return {path.name for place in (folder.glob("*.json"), folder.glob(".work/hashes.*")) for path in place}
