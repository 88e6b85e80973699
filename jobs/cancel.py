"""Stop a run that is queued or running: ``python jobs/cancel.py RUN``. It saves first where it runs, and does not come back by itself."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys

import psutil

from jobs.slurm_state import living_job
from pipeline.errors import RunFailed, UserError, run_command
from pipeline.runs import RunFolder, find_run, runs_root


def main() -> int:
    parser = argparse.ArgumentParser(prog="python jobs/cancel.py", description=__doc__)
    parser.add_argument(
        "run", help="a run folder, its name (dismix_demo/1f3a9c2e), or a config's name (its newest run)"
    )
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args()
    run = find_run(args.run, runs_root(args.runs))
    job, writer = living_job(run), run.writer()
    if job:
        # A signal to the steps lets the ranks save; with SIGINT they end by agreement and the job is not requeued.
        pending = job[1].startswith("PENDING")
        command = ["scancel", job[0]] if pending else ["scancel", "--signal=INT", job[0]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(f"scancel {job[0]} failed: {done.stderr.strip()}")
        run.record("cancelled", job_id=job[0], pending=pending)
        print(
            f"{run.name}: job {job[0]} {'is taken out of the queue' if pending else 'saves and ends'}.", file=sys.stderr
        )
    elif writer and writer["host"] == socket.gethostname():
        interrupt(writer["pid"], run)
        run.record("cancelled")
        print(f"{run.name}: the training on this machine saves and ends.", file=sys.stderr)
    elif writer:
        raise UserError(f"{run.name} runs on {writer['host']} without SLURM; type this command there.")
    else:
        print(f"{run.name} is neither queued nor running.", file=sys.stderr)
    print(run.path)
    return 0


def interrupt(pid: int, run: RunFolder) -> None:
    try:
        os.kill(pid, signal.SIGINT)
    except ProcessLookupError:
        print(f"{run.name} has just ended.", file=sys.stderr)
    except PermissionError:
        owner = psutil.Process(pid).username()
        raise UserError(
            f"{run.name} is trained by {owner} (process {pid}), whom you cannot stop; ask {owner}."
        ) from None


if __name__ == "__main__":
    run_command(main)
