"""All that was said about the end of a run's newest attempt: by its history, every rank's log, the stacks of a hang, and SLURM."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring import slurm_jobs
from monitoring.attempts import Attempt, events, read_attempts
from monitoring.logs import RankLog, last_lines, rank_logs
from pipeline.files import read_lines
from pipeline.runs import RunFolder

LATER = {"cancelled", "requeue_failed"}  # what ends a run that was on its way back into the queue
LINES = 200  # of the end of a log
SAYS_SOMETHING = re.compile(
    r"error|exception|killed|fatal|out of memory|oom|cancelled|traceback|cannot|no space|not intact|bus error|xid", re.I
)
BEGAN_ON = re.compile(r" is (?:nan|-?inf) on rank (\d+)\b")
PROGRESS = re.compile(r"step \d+/\d+ ")
SLURMS = re.compile(
    r"^(?:slurmstepd-?(?P<node>\S*?)|srun): error: (?:(?P<srun_node>[^\s:]+): task(?:s)? (?P<rank>\d+))?"
)
# Where a rank stands that waits for the others; DDP averages within the backward, of which Python sees only its engine.
COLLECTIVE = re.compile(
    r"distributed_c10d|_engine_run_backward|pipeline/(distributed|collectives)\.py|in synchronize\b"
)
INNERMOST = 4  # frames in which that is looked for


@dataclass(frozen=True)
class Word:
    """One thing that was said. ``at``: seconds since the epoch; ``source``: a file's name, "history" or "sacct"."""

    at: float
    text: str
    source: str
    rank: int | None = None
    node: str = ""

    def line(self, pattern: re.Pattern[str]) -> str:
        """The last line in which ``pattern`` is found: an exception's message stands at the end."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if pattern.search(line)), lines[-1] if lines else "")


@dataclass(frozen=True)
class Evidence:
    run: RunFolder
    history: list[dict[str, Any]]
    attempts: list[Attempt]
    words: list[Word]

    @property
    def attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None


def gather(run: RunFolder) -> Evidence:
    """Everything, the earliest first. Reads only; SLURM's accounting is asked where the run was queued."""
    history = events(read_lines(run.history_file)[0])
    attempts = read_attempts(history)
    start = newest_start(history)
    words = [
        *_of_history(history[start:], attempts),
        *_of_logs(run, history, start, attempts),
        *_of_slurm(history, attempts),
    ]
    words.sort(key=lambda word: word.at)
    return Evidence(run, history, attempts, words)


def newest_start(history: Sequence[dict[str, Any]]) -> int:
    """Where in the history the newest attempt begins; what failed before it could begin follows the one before, or the queueing."""
    for i in reversed(range(len(history))):
        if history[i]["event"] in ("attempt", "queued"):  # queued: it came no further than that
            return i
        if history[i]["event"] == "requeued" and any(e["event"] in LATER for e in history[i:]):
            return i
    return 0


def _of_history(history: Sequence[dict[str, Any]], attempts: list[Attempt]) -> Iterator[Word]:
    attempt = attempts[-1] if attempts else None
    for event in history:
        kind, rank, message = event["event"], event.get("rank"), str(event.get("message") or "")
        if named := BEGAN_ON.search(message):  # every rank fails by it, and says so
            rank = int(named[1])
        node = str(event.get("node") or (attempt.node_of(rank) if attempt and rank is not None else ""))
        said = {
            "rank_failed": f"{event.get('error')}: {message}",
            "rank_ended": f"exit code {event.get('exit_code')} {event.get('signal', '')}",
            "end": message or f"end {event.get('reason')}",
            "gave_up": message,
            "hung": f"hung for {event.get('silent_s')} s after step {event.get('after_step')}, stacks in {event.get('stacks')}",
            "save_failed": f"save_failed: {message}",
            "rolled_back": message,
            "node_excluded": f"node_excluded: {event.get('why')}",
            "requeue_failed": f"requeue_failed: {message}",
            "cancelled": "cancelled by hand",
            "superseded": "superseded",
            "requeued": f"requeued: {event.get('why')}",
        }.get(kind)
        if said is not None:
            yield Word(event["time"], said, "history", rank, node)


def _of_logs(run: RunFolder, history: Sequence[dict[str, Any]], start: int, attempts: list[Attempt]) -> Iterator[Word]:
    """The end of each rank's log of the newest job; SLURM's own lines in it one by one, for they name node and rank."""
    logs = rank_logs(run)
    began = history[start]["time"] if history else 0.0
    failed = {e["rank"]: e for e in history[start:] if e["event"] == "rank_failed" and isinstance(e.get("rank"), int)}
    for log in (log for log in logs if log.job == logs[-1].job and log.modified >= began):
        told = failed.get(log.rank, {})
        node = str(told.get("node") or (attempts[-1].node_of(log.rank) if attempts else ""))
        for file in log.files:
            text = _end_of(file)
            slurms = [line for line in text.splitlines() if SLURMS.match(line)]
            own = "\n".join(line for line in text.splitlines() if not SLURMS.match(line))
            at = _told_at(log, file)
            if SAYS_SOMETHING.search(own):
                # A rank prints its traceback after it has told the history; a file's time may be some ms, or another host's clock, behind.
                yield Word(max(at, float(told.get("time", 0.0))), own, file.name, log.rank, node)
            yield from (_of_slurmstepd(line, at, file) for line in slurms)


def _end_of(file: Path) -> str:
    """The end of a log without progress lines, and without what stands before the last time that its job was started again."""
    lines = last_lines(file, LINES)[0].decode(errors="replace").replace("\r", "\n").splitlines()
    again = max((i for i, line in enumerate(lines) if line.startswith("gate: ")), default=-1)
    return "\n".join(line for line in lines[again + 1 :] if not PROGRESS.search(line))


def _told_at(log: RankLog, file: Path) -> float:
    return log.failed() or file.stat().st_mtime


def _of_slurmstepd(line: str, at: float, file: Path) -> Word:
    match = SLURMS.match(line)
    assert match is not None
    rank = int(match["rank"]) if match["rank"] else None
    return Word(at, line, file.name, rank, match["srun_node"] or match["node"] or "")


def _of_slurm(history: Sequence[dict[str, Any]], attempts: list[Attempt]) -> Iterator[Word]:
    job = next((e.get("job_id") for e in reversed(history) if e["event"] == "queued"), None)
    if not job or (attempts and attempts[-1].job is None):
        return
    ended = slurm_jobs.accounted({job}).get(job)
    if ended and not ended.lives and ended.state != "COMPLETED":
        yield Word(history[-1]["time"], f"{ended.state} {ended.reason}", "sacct", node=ended.nodes)


# -- a hang's stacks ----------------------------------------------------------------------------------------------


def stuck_ranks(run: RunFolder, attempt: Attempt, step: int) -> dict[int, str]:
    """By rank, why it is to blame for a hang after ``step``: it waits for nobody, or it could not even write down where it stands.

    All other ranks stand in a collective and wait for it. Empty where that does not tell them apart.
    """
    stacks = {
        int(path.stem.removeprefix("hung_rank").partition("_")[0]): path.read_text(errors="replace")
        for path in run.logs.glob(f"hung_rank*_step{step}.txt")
    }
    silent = set(range(attempt.world_size)) - stacks.keys()
    if silent and stacks:
        return dict.fromkeys(sorted(silent), "it wrote down no stacks: it was stopped, or its host is gone")
    busy = [rank for rank, text in sorted(stacks.items()) if not _waits(text)]
    if len(busy) == len(stacks):
        return {}
    return {rank: f"it stands in {_innermost(stacks[rank])}, the others wait in a collective" for rank in busy}


def _waits(text: str) -> bool:
    return any(COLLECTIVE.search(frame) for frame in _main_thread(text).splitlines()[1 : INNERMOST + 1])


def _main_thread(text: str) -> str:
    """faulthandler writes the main thread last."""
    return re.split(r"^(?:Current t|T)hread ", text, flags=re.MULTILINE)[-1]


def _innermost(text: str) -> str:
    found = re.search(r'File "[^"]*?([^/"]+)", line (\d+) in (\S+)', _main_thread(text))
    return f"{found[3]} ({found[1]}:{found[2]})" if found else "an unknown place"
