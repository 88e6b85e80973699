"""How every run stands: its folder and what SLURM says of its job, as one row of the screen.

The run folder is the truth; SLURM only adds what a folder cannot know, that a job waits, and what became of one that ended without a word.
Works on mirrored folders too: there "now" is when the mirror last saw the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from monitoring import slurm_jobs
from monitoring.attempts import Attempt, events, read_attempts
from monitoring.health import Signs, health, reason_of_end
from monitoring.recent import BestValidation, Recent, read_recent
from monitoring.slurm_jobs import Answer, Job
from pipeline.files import read_json, read_lines, write_json
from pipeline.runs import HEARTBEAT_STALE, RunFolder, list_runs

CACHE = ".status.json"
ALIVE = ("running", "starting", "queued", "silent")


@dataclass(frozen=True)
class Standing:
    """One run on the screen. Times in seconds since the epoch, ages and what is left in seconds, rates in steps a second.

    ``data_wait``: share of the time that goes into waiting for data; ``mfu``: share of the device's peak arithmetic;
    ``peak_memory``: GiB that one process has held at most, of a GPU or else of its node;
    ``gpu_use``, ``gpu_memory``: shares, of all GPUs and of the fullest; ``gpu_power`` in W.
    ``state``: queued, starting, running, silent (alive for SLURM, but not heard of), complete, failed, stopped, killed, or created.
    ``health``: what a person should know of it, in words, the worst first.
    """

    name: str
    state: str
    changed: float
    step: int | None = None
    total: int | None = None
    processes: int | None = None
    left: float | None = None
    loss: float | str | None = None
    loss_change: float | None = None
    loss_change_over: float | None = None
    best_validation: float | None = None
    best_validation_step: int | None = None
    rate: float | None = None
    rate_change: float | None = None
    data_wait: float | None = None
    mfu: float | None = None
    peak_memory: float | None = None
    gpu_use: float | None = None
    gpu_memory: float | None = None
    gpu_power: float | None = None
    checkpoint_age: float | None = None
    attempts: int = 0
    gpu_hours: float = 0.0
    job: str | None = None
    waits_for: str = ""
    health: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


@dataclass(frozen=True)
class Overview:
    """All runs under one root, those that are alive first, then the newest. ``seen``: the age of a mirror, None on the spot."""

    root: Path
    runs: list[Standing]
    slurm: Answer | None
    seen: float | None
    unreadable: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        slurm = {"age": round(self.slurm.age, 1), "problem": self.slurm.problem} if self.slurm else None
        return {
            "runs_root": str(self.root), "slurm": slurm, "mirror_age": self.seen, "runs": [asdict(s) for s in self.runs],
            "unreadable": self.unreadable,
        }  # fmt: skip


def look(root: Path) -> Overview:
    """Read every run under ``root`` and ask SLURM, at most once a minute, where there is any and this is no mirror."""
    seen = (read_json(root / ".sync" / "seen.json") or {}).get("time")
    now = time.time() if seen is None else float(seen)
    kept = _kept(root)
    found, unreadable = [], {}
    for run in list_runs(root):
        try:
            found.append(Reading.of(run, now, mirrored=seen is not None, kept=kept))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # damaged, or being removed
            unreadable[run.name] = f"{type(error).__name__}: {error}"
    slurm = None
    if seen is None:
        waiting = [r for r in found if r.may_have_a_job]
        owners = {r.run.path.stat().st_uid for r in waiting}
        slurm = slurm_jobs.ask(root, owners, {r.job for r in waiting if r.job})
    rows = [reading.standing(slurm, now) for reading in found]
    _keep(root, {r.run.name: asdict(r.best) for r in found}, kept)
    rows.sort(key=lambda row: (not row.alive, -row.changed))
    return Overview(root, rows, slurm, None if seen is None else time.time() - now, unreadable)


@dataclass
class Reading:
    """What the folder of one run says."""

    run: RunFolder
    history: list[dict[str, Any]]
    attempts: list[Attempt]
    heartbeat: dict[str, Any]
    writes: bool
    recent: Recent
    best: BestValidation

    @classmethod
    def of(cls, run: RunFolder, now: float, *, mirrored: bool, kept: Mapping[str, Any]) -> Reading:
        history = events(read_lines(run.history_file)[0])
        if not history:
            raise ValueError("its history holds no event")
        attempts = read_attempts(history)
        beat = run.heartbeat()
        heartbeat = beat if isinstance(beat, dict) else {}
        trains = bool(attempts) and attempts[-1].how is None
        writes = trains and (now - heartbeat.get("time", 0) < HEARTBEAT_STALE if mirrored else run.writer() is not None)
        best = BestValidation(**kept.get(run.name, {}))
        best.update(run.metrics)
        return cls(run, history, attempts, heartbeat, writes, read_recent(run.metrics) if trains else Recent(), best)

    @property
    def job(self) -> str | None:
        return next((e.get("job_id") for e in reversed(self.history) if e["event"] == "queued"), None)

    @property
    def may_have_a_job(self) -> bool:
        """Whether SLURM may know more than the folder: the run was queued, and has not said that it is over."""
        return self.job is not None and self._told()[0] in ("queued", "killed", "running")

    def _told(self) -> tuple[str, str]:
        """(state, why) by the folder alone."""
        last = next((e for e in reversed(self.history) if e["event"] in _SPEAKING), None)
        if last is None:
            return "created", ""
        if last["event"] == "end":
            state = {"complete": "complete", "failed": "failed"}.get(str(last.get("reason")), "stopped")
            return state, "" if state == "complete" else reason_of_end(last)
        ended = next((a.how for a in reversed(self.attempts) if a.how), None)
        if last["event"] == "gave_up" and ended in ("complete", "interrupted"):  # nobody gave anything up
            return ("complete", "") if ended == "complete" else ("stopped", "stopped by hand")
        if last["event"] in ("gave_up", "requeue_failed"):
            return "failed", str(last.get("message", ""))
        if last["event"] == "cancelled" and not self.writes:
            return "stopped", "cancelled by hand"
        if last["event"] in ("queued", "requeued"):
            return "queued", ""
        return ("running", "") if self.writes else ("killed", "it ended without a word")

    def standing(self, slurm: Answer | None, now: float) -> Standing:
        state, why = self._with_slurm(*self._told(), slurm.get(self.job) if slurm else None)
        newest = self.attempts[-1] if self.attempts else None
        beat, rate, change = self.heartbeat, self.recent.rate(), self.recent.loss_change()
        job = slurm.get(self.job) if slurm else None
        step, total = beat.get("step"), beat.get("total") or self._total()
        per_second = (rate[0] if rate else beat.get("rate")) if state == "running" else None
        seen = beat.get("gpu") if state == "running" else None
        gpu: dict[str, Any] = seen if isinstance(seen, dict) else {}
        signs = Signs(
            self.run.name, self.history, self.attempts, beat, self.recent, self._checkpoint(), now, state, why
        )
        return Standing(
            name=self.run.name,
            state=state,
            changed=max(self.history[-1]["time"], beat.get("time", 0.0)),
            step=step,
            total=total,
            processes=newest.world_size if newest else None,
            left=(total - step) / per_second if per_second and step is not None and total else None,
            loss=_finite(self.recent.loss if self.recent.loss is not None else beat.get("loss")),
            loss_change=change[0] if change else None,
            loss_change_over=change[1] if change else None,
            best_validation=self.best.loss,
            best_validation_step=self.best.step,
            rate=per_second,
            rate_change=rate[1] if rate and state == "running" else None,
            data_wait=self.recent.data_wait(),
            mfu=self.recent.mfu() if state == "running" else None,
            peak_memory=self.recent.peak_memory() if state == "running" else None,
            gpu_use=gpu.get("use"),
            gpu_memory=gpu["memory"] / gpu["memory_total"] if gpu.get("memory") and gpu.get("memory_total") else None,
            gpu_power=gpu.get("power_w"),
            checkpoint_age=now - signs.checkpoint if signs.checkpoint else None,
            attempts=len(self.attempts),
            gpu_hours=round(sum(self._held(a, now) * a.world_size for a in self.attempts) / 3600, 3),
            job=self.job,
            waits_for=_waits_for(job) if state == "queued" and job else "",
            health=health(signs),
        )

    def _with_slurm(self, state: str, why: str, job: Job | None) -> tuple[str, str]:
        """The folder's word corrected by SLURM's."""
        by_hand = state == "killed" and self.attempts[-1].job is None  # after it was queued, once: that job is history
        if job is None or by_hand or state not in ("queued", "killed"):
            return state, why
        if job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"):
            return "queued", ""
        if job.lives:
            return ("starting" if state == "queued" else "silent"), ""
        exit_code = f", exit code {job.exit_code}" if job.exit_code not in ("", "0:0") else ""
        return "killed", f"SLURM: {job.state}{exit_code}{f' on {job.nodes}' if job.nodes else ''}"

    def _held(self, attempt: Attempt, now: float) -> float:
        """Seconds for which an attempt held its processes; of one that was killed, until it was heard of last."""
        newest = attempt is self.attempts[-1]
        until = now if newest and self.writes else float(self.heartbeat.get("time", 0.0)) if newest else 0.0
        return max(0.0, (attempt.ended or max(until, attempt.first_step or attempt.began)) - attempt.born)

    def _total(self) -> int | None:
        """How many steps it is to have, where no heartbeat says so yet."""
        total = None
        for event in self.history:
            if event["event"] == "created":
                total = event.get("config", {}).get("trainer", {}).get("max_steps")
            elif event["event"] == "changed":
                total = event.get("changes", {}).get("trainer.max_steps", {}).get("to", total)
        return total

    def _checkpoint(self) -> float | None:
        """When the newest checkpoint was written; by the journal where the mirror has left the checkpoints where they were."""
        saves = [at for at, _ in self.recent.series("time/save_s")]
        times = [path.stat().st_mtime for path in self.run.checkpoints.glob("step_*")]
        return max([*saves, *times], default=None)


_SPEAKING = {"attempt", "end", "queued", "requeued", "gave_up", "requeue_failed", "cancelled"}


def _waits_for(job: Job) -> str:
    start = f", start ~{job.starts[5:16].replace('T', ' ')}" if job.starts else ""
    return f"{job.reason or job.state}{start}"


def _finite(value: float | str | None) -> float | str | None:
    """A number as JSON can hold it: one that is not finite as a word."""
    return str(value) if isinstance(value, float) and value - value != 0 else value


# -- what is kept from one look to the next -----------------------------------------------------------------------


def _kept(root: Path) -> dict[str, Any]:
    """By run, what its journals have shown so far; whatever is not as it was written is read anew."""
    tree = read_json(root / CACHE)
    runs = tree.get("best", {}) if isinstance(tree, dict) else {}
    return {name: dict(_entries(entry)) for name, entry in runs.items() if isinstance(entry, dict)}


def _entries(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, entry[key]) for key in ("loss", "step", "read") if key in entry)


def _keep(root: Path, best: dict[str, Any], before: dict[str, Any]) -> None:
    if best == before:
        return
    try:
        write_json(root / CACHE, {"best": best}, durable=False)
    except OSError:  # runs that may only be read: the next look costs as much as this one
        return
