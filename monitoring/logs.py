"""Show what a run's ranks wrote, across requeues: ``python monitoring/logs.py RUN``.

Without ``--rank`` it is rank 0 that speaks, or, where the run died, the rank that failed first: the others only complain that it is gone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, run_command
from pipeline.runs import RunFolder, find_run, runs_root

SLURM_LOG = re.compile(r"(\d+(?:_\d+)?)_(\d+)_log\.(?:err|out)")
LOCAL_LOG = re.compile(r"local_([0-9a-f]+)_rank(\d+)\.log")
FAILURE = re.compile(
    rb"^(?:Traceback \(most recent call last\)|error: |failed: |slurmstepd.*error|.*Killed)", re.MULTILINE
)
TAIL = 1 << 16  # bytes in which a failure is looked for
BESIDE = {"rank_failed", "rank_ended", "warning"}  # events that may come after a run's last word
SECONDS = 0.5  # between two looks while following


@dataclass(frozen=True)
class RankLog:
    """All files of one rank in one job (or one local launch); a requeued job goes on in the same files."""

    job: str
    rank: int
    files: tuple[Path, ...]

    @property
    def modified(self) -> float:
        return max(f.stat().st_mtime for f in self.files)

    def failed(self) -> float | None:
        """When this rank wrote last, where the end of what it wrote tells of a failure."""
        for file in self.files:
            with file.open("rb") as f:
                f.seek(max(0, file.stat().st_size - TAIL))
                if FAILURE.search(f.read()):
                    return file.stat().st_mtime
        return None


def rank_logs(run: RunFolder) -> list[RankLog]:
    """The logs of every job of ``run``, the oldest job first, ranks in order."""
    own = {e["job_id"]: Path(e.get("logs") or run.logs) for e in run.history() if e["event"] == "queued"}
    found: dict[tuple[str, int], list[Path]] = {}
    for folder in {run.logs, *own.values()}:
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            match = SLURM_LOG.fullmatch(path.name) or LOCAL_LOG.fullmatch(path.name)
            if match and (match[1] in own or folder == run.logs):
                found.setdefault((match[1], int(match[2])), []).append(path)
    logs = [RankLog(job, rank, tuple(files)) for (job, rank), files in found.items()]
    first = {log.job: min(f.stat().st_ctime for x in logs if x.job == log.job for f in x.files) for log in logs}
    return sorted(logs, key=lambda log: (first[log.job], log.rank))


def choose(logs: list[RankLog], rank: int | None, *, died: bool) -> RankLog:
    """The newest job's log of ``rank``; None: of the rank that failed first where the run ``died``, else of rank 0.

    Raises UserError where that rank wrote nothing.
    """
    newest = [log for log in logs if log.job == logs[-1].job]
    if rank is not None:
        of_rank = [log for log in newest if log.rank == rank]
        if not of_rank:
            ranks = ", ".join(str(log.rank) for log in newest)
            raise UserError(f"rank {rank} wrote nothing in job {newest[0].job}; there are logs of rank {ranks}.")
        return of_rank[0]
    failed = sorted((at, log.rank) for log in newest if died and (at := log.failed()) is not None)
    return next((log for log in newest if failed and log.rank == failed[0][1]), newest[0])


def is_over(run: RunFolder) -> bool:
    """Whether nothing will be written any more: complete, given up, stopped by hand, taken out of the queue, or failed."""
    last = next(e for e in reversed(run.history()) if e["event"] not in BESIDE)
    if last["event"] == "cancelled":
        return bool(last.get("pending"))  # one that runs saves first, and says how it ended
    return last["event"] == "gave_up" or (
        last["event"] == "end" and last["reason"] in ("complete", "failed", "interrupted")
    )


def last_lines(file: Path, count: int) -> tuple[bytes, int]:
    """The last ``count`` lines of a file and where it ends."""
    with file.open("rb") as f:
        end = f.seek(0, os.SEEK_END)
        start, block = end, b""
        while start > 0 and block.count(b"\n") <= count:
            step = min(TAIL, start)
            start -= step
            f.seek(start)
            block = f.read(step) + block
    lines = block.splitlines(keepends=True)
    return b"".join(lines[-count:] if count else []), end


def follow(run: RunFolder, rank: int | None, shown: RankLog, ends: dict[Path, int]) -> Iterator[bytes]:
    """New bytes as they are written, across requeues and into the next job, until the run is over."""
    while True:
        over = is_over(run)  # before the read: what was written last is still shown
        logs = rank_logs(run)
        newest = choose(logs, rank, died=False) if logs else shown
        if newest.job != shown.job:
            print(f"== job {newest.job}, rank {newest.rank}", file=sys.stderr, flush=True)
            shown = newest
        for file in newest.files:
            with file.open("rb") as f:
                f.seek(ends.get(file, 0))
                new = f.read()
                ends[file] = f.tell()
            if new:
                yield new
        if over:
            return
        time.sleep(SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python monitoring/logs.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, its name (dismix_demo/1f3a9c2e), or a config's name")
    parser.add_argument("--rank", type=int, metavar="N", help="default: 0, or the rank that failed first")
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="how many from the end (default 40)")
    parser.add_argument("--follow", "-f", action="store_true", help="stay, and show what comes, until the run is over")
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args()
    run = find_run(args.run, runs_root(args.runs))
    logs = rank_logs(run)
    if not logs:
        raise UserError(f"{run.name} has no logs yet; they come when its processes start.")
    chosen = choose(logs, args.rank, died=is_over(run) and (run.last_end() or {}).get("reason") != "complete")
    ends: dict[Path, int] = {}
    for file in chosen.files:
        print(f"== job {chosen.job}, rank {chosen.rank}: {file}", file=sys.stderr, flush=True)
        lines, ends[file] = last_lines(file, args.lines)
        sys.stdout.buffer.write(lines)
        sys.stdout.flush()
    if args.follow:
        for new in follow(run, args.rank, chosen, ends):
            sys.stdout.buffer.write(new)
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    run_command(main)
