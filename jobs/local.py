"""The same job on this machine: one process a rank, no scheduler.

The launcher only starts, watches and ends processes. It holds nothing that would be lost with it: the ranks notice when it is gone.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs.last_words import note_ended
from jobs.terminal import Speaker, as_terminal
from pipeline.errors import RunFailed
from pipeline.runs import RunFolder

GRACE_SECONDS = 5.0  # for the other ranks once one has died: their collectives notice by themselves


def run_local(run: RunFolder, processes: int) -> dict:
    """Train ``run`` with ``processes`` ranks; returns the history's end event of the attempt.

    Ctrl-C and SIGTERM are passed on: the ranks save and end. Raises RunFailed where a rank died.
    """
    launch = secrets.token_hex(6)
    speaker = Speaker(_log(run, 0, launch))
    ranks = [_start(run, rank, processes, launch, speaker) for rank in range(processes)]
    speaker.started()
    previous = {n: signal.signal(n, lambda number, _: _pass_on(ranks, number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = _wait(ranks)
        for number in failed:  # before the others are ended
            note_ended(run, number, ranks[number].returncode)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()
        speaker.finish()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if failed:
        raise RunFailed(_obituary(run, ranks, failed[0], launch))
    end = run.last_end()
    if end is None and run.writer():
        raise RunFailed(
            f"{run.name} is being trained by a later attempt, so this one stopped; --wait follows that one."
        )
    if end is None:
        raise RunFailed(
            f"{run.name} has stopped, and its history lacks how; the same command goes on from its last checkpoint."
        )
    return end


def _start(run: RunFolder, rank: int, size: int, launch: str, speaker: Speaker) -> subprocess.Popen:
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // size))
    env = os.environ | {
        "PYTHONPATH": str(run.code),
        "PYTHONSAFEPATH": "1",  # the snapshot, not whatever lies in the current folder
        "OMP_NUM_THREADS": threads,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "SLURMPHONY_LAUNCH": launch,
        "SLURMPHONY_PARENT": str(os.getpid()),
    }
    command = [sys.executable, "-m", "jobs.train_job", str(run.path)]
    if rank == 0:  # rank 0 speaks to the person, too
        env |= as_terminal()
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=speaker.end, stderr=subprocess.STDOUT
        )
    with _log(run, rank, launch).open("wb") as log:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def _log(run: RunFolder, rank: int, launch: str) -> Path:
    return run.logs / f"local_{launch}_rank{rank}.log"


def _pass_on(ranks: list[subprocess.Popen], number: int) -> None:
    """Ctrl-C reaches the ranks from the terminal too; a flag set twice is a flag set."""
    print("\nstopping: the run saves a checkpoint at the end of this step...", file=sys.stderr, flush=True)
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _wait(ranks: list[subprocess.Popen]) -> list[int]:
    """Wait for all; the ranks that had failed when the first one was seen to have, killed ones first: of others' deaths ranks complain.

    After a failure the others get a short grace.
    """
    failed: list[int] = []
    deadline = 0.0
    while any(rank.poll() is None for rank in ranks):
        if not failed:
            failed = _failed(ranks)
            deadline = time.monotonic() + GRACE_SECONDS
        elif time.monotonic() > deadline:
            return failed
        time.sleep(0.05)
    return failed or _failed(ranks)


def _failed(ranks: list[subprocess.Popen]) -> list[int]:
    return sorted((i for i, rank in enumerate(ranks) if rank.poll()), key=lambda i: (ranks[i].poll() or 0) > 0)


def _obituary(run: RunFolder, ranks: list[subprocess.Popen], failed: int, launch: str) -> str:
    code = ranks[failed].returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    text = f"rank {failed} of {run.name} {how}; the same launch command goes on from the last checkpoint."
    log = _log(run, failed, launch)
    if failed and log.is_file() and log.stat().st_size:
        tail = log.read_text(errors="replace").splitlines()[-8:]
        text += f" The end of its log ({log}):\n" + "\n".join(f"  {line}" for line in tail)
    return text
