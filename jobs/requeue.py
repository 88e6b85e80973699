"""Whether a job that ended before its run was complete comes back, and how: ``scontrol requeue``, or a sentence why not.

Called by rank 0 when SLURM has warned of the time limit, and by the batch script when ``srun`` failed: a rank was killed, a node broke
off, a process hung and was ended. It needs neither accounting nor any state but the run folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.errors import EXIT_USER_ERROR, run_command
from pipeline.runs import RunFolder

STARTS_WITHOUT_PROGRESS = 3


def reason_to_give_up(run: RunFolder, exit_code: int | None) -> str | None:
    """Why this run must not be requeued, in words; None where it may.

    Args:
        exit_code: of srun; None where the ranks ended by agreement.
    """
    history = run.history()
    end = run.last_end()
    if end and end["reason"] == "complete":
        return "it is complete"
    if end and end["reason"] == "interrupted":
        return "it was interrupted by hand"
    if end and end["reason"] == "failed":
        return end["message"]
    if exit_code == EXIT_USER_ERROR:
        return "it was asked for something that cannot be (exit code 2); its log says what"
    at = (run.steps() or [0])[-1]
    earlier = [e for e in history if e["event"] == "requeued"][-(STARTS_WITHOUT_PROGRESS - 1) :]
    if len(earlier) == STARTS_WITHOUT_PROGRESS - 1 and all(e["after_step"] == at for e in earlier):
        return f"{STARTS_WITHOUT_PROGRESS} starts have not got beyond step {at}"
    return None


def timed_out(job: str) -> bool:
    """Whether SLURM is ending ``job`` because of its time limit."""
    done = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True)
    return "Reason=TimeLimit" in done.stdout or "JobState=TIMEOUT" in done.stdout


def requeue(run: RunFolder, why: str, exit_code: int | None = None) -> bool:
    """Put this job back into the queue; False where it must not come back, which the history then says."""
    job = os.environ["SLURM_JOB_ID"]
    refusal = reason_to_give_up(run, exit_code)
    if refusal:
        run.record("gave_up", job_id=job, message=refusal)
        print(f"{run.name} is not requeued: {refusal}.", file=sys.stderr, flush=True)
        return False
    run.record("requeued", job_id=job, after_step=(run.steps() or [0])[-1], why=why)
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        message = f"scontrol requeue {job} failed: {done.stderr.strip()}"
        run.record("requeue_failed", job_id=job, message=message)
        print(f"{message}; launch the run again by hand.", file=sys.stderr, flush=True)
        return False
    return True


def main() -> int:
    """``python -m jobs.requeue RUN EXIT_CODE``, in the batch script after a failed srun; ends with that exit code."""
    run, code = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
    requeue(run, f"srun ended with exit code {code}", code)
    return code


if __name__ == "__main__":
    run_command(main)
