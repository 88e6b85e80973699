"""Whether a job that ended before its run was complete comes back, and how: ``scontrol requeue``, or a sentence why not.

Called by rank 0 when the ranks have saved and stopped, and by the batch script when ``srun`` failed: a rank was killed, a node broke
off, a process hung and was ended. It needs neither accounting nor any state but the run folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.nodes import to_exclude
from jobs.slurm_state import job_facts, own_job
from pipeline.errors import EXIT_USER_ERROR, run_command
from pipeline.runs import RunFolder, last_end

STARTS_WITHOUT_PROGRESS = 3
# SLURM says the second instead of the first while a signal, such as the warning, is on its way to the nodes.
RUNS = ("RUNNING", "SIGNALING")


def reason_to_give_up(run: RunFolder, job: str, exit_code: int | None) -> str | None:
    """Why this run must not be requeued, in words; None where it may. What was before ``job`` was queued does not count.

    Args:
        job: this one, as ``own_job`` names it.
        exit_code: of srun; None where the ranks ended by agreement.
    """
    history = _since_queued(run.history(), job)
    if taken := _taken_over(run, history):
        return taken
    end = last_end(history)
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


def _since_queued(history: list[dict[str, Any]], job: str) -> list[dict[str, Any]]:
    queued = [i for i, event in enumerate(history) if event["event"] == "queued" and event["job_id"] == job]
    return history[queued[-1] :] if queued else history


def _taken_over(run: RunFolder, history: list[dict[str, Any]]) -> str | None:
    """Whether another job has this run now: this one's newest attempt was superseded, said so or had no time to."""
    job = os.environ.get("SLURM_JOB_ID")
    attempts = [event["attempt"] for event in history if event["event"] == "attempt" and event.get("job_id") == job]
    if not attempts:
        return None
    writer = run.writer()
    told = any(event["event"] == "superseded" and event["attempt"] == attempts[-1] for event in history)
    return "a later attempt has taken over" if told or (writer and writer["attempt"] > attempts[-1]) else None


def must_come_back(facts: dict[str, str]) -> bool:
    """Whether a job that got SIGTERM and has saved comes back only if we ask for it.

    SIGTERM means one of: the time limit came without a warning, or the job is preempted and would hold its nodes for the whole grace
    time only to be requeued at its end (both: yes); it was requeued by somebody already, or cancelled (both: no, it is not RUNNING then).
    """
    timed_out = facts.get("Reason") == "TimeLimit" or facts.get("JobState") == "TIMEOUT"
    preempted = facts.get("JobState") in RUNS and facts.get("PreemptTime", "None") != "None"
    return timed_out or preempted


def requeue(run: RunFolder, why: str, exit_code: int | None = None) -> bool:
    """Put this job back into the queue; False where it must not come back, which the history then says."""
    job = own_job()
    assert job is not None
    facts = job_facts(job)
    starts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if (
        int(facts.get("Restarts", starts)) > starts
    ):  # a node that SLURM gave up wakes, and its job runs elsewhere by now
        print(f"{run.name}: job {job} has been started again meanwhile.", file=sys.stderr, flush=True)
        return False
    if exit_code is not None and facts.get("JobState", "RUNNING") not in RUNS:  # cancelled, or on its way back already
        print(f"{run.name}: job {job} is {facts['JobState']}; it is left to SLURM.", file=sys.stderr, flush=True)
        return False
    out = to_exclude(run.path.parent.parent, facts.get("Partition"), int(facts.get("NumNodes", "1").split("-")[0]))
    refusal = reason_to_give_up(run, job, exit_code) or _write_down(run, job, why, out, starts)
    if refusal:
        if run.history()[-1]["event"] != "gave_up":
            run.note("gave_up", job_id=job, message=refusal)
        print(f"{run.name} is not requeued: {refusal}.", file=sys.stderr, flush=True)
        return False
    before = signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # the requeue ends this job, us among it; inherited by scontrol
    try:
        back = _scontrol(run, job, "requeue", job)
        if back and out:  # SLURM takes this for a job that waits, and from here on it does
            _scontrol(run, job, "update", f"JobId={job}", f"ExcNodeList={','.join(out)}")
    finally:
        signal.signal(signal.SIGTERM, before)
    return back


def _write_down(run: RunFolder, job: str, why: str, out: list[str], starts: int) -> str | None:
    """Note that ``job`` goes back; where that is impossible SLURM's own count of ``starts`` ends it in time, and this is why."""
    try:
        run.record("requeued", job_id=job, after_step=(run.steps() or [0])[-1], why=why, excluded_nodes=out)
    except OSError as error:
        if starts + 1 >= STARTS_WITHOUT_PROGRESS:
            return f"{run.history_file} cannot be written ({error.strerror}), after {starts + 1} starts"
    return None


def _scontrol(run: RunFolder, job: str, *words: str) -> bool:
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True)
    if done.returncode:
        message = f"scontrol {' '.join(words)} failed: {done.stderr.strip()}"
        run.note("requeue_failed", job_id=job, message=message)
        print(f"{message}; look at the job with scontrol show job {job}.", file=sys.stderr, flush=True)
    return done.returncode == 0


def main() -> int:
    """``python -m jobs.requeue RUN EXIT_CODE``, in the batch script after a failed srun; ends with that exit code."""
    run, code = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
    requeue(run, f"srun ended with exit code {code}", code)
    return code


if __name__ == "__main__":
    run_command(main)
