"""The run folder: what a run is, where its parts lie, who may write to it, and what happened to it.

    runs/<name>/<8 hex>/
      config.yaml      the frozen config        history.jsonl   attempts, ends, changes: append-only
      code/            what is running          lease.json      which process the newest attempt is
      checkpoints/     step_000010000/ ...      heartbeat.json  step, rate and time of the attempt that writes
      metrics/         attempt_003.jsonl        samples/ figures/ logs/ evaluation.json
      launch.json      where it was launched    data.json       what its data says of itself: enough to use the run without it

The newest attempt, and no other, may write: it is the one whose journal has the highest number, and a file can be created only once.

Imports no torch: launch, status and sync read runs on machines that have none.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import processes
from pipeline.errors import RunFailed, UserError, nearest
from pipeline.files import append_line, read_json, read_lines, write_json

RUN_ID = re.compile(r"[0-9a-f]{8}(-\d+)?")  # the identity; a sibling made by --new has a number behind it
RUNS = Path(__file__).resolve().parent.parent / "runs"
JOURNAL = re.compile(r"attempt_(\d+)\.jsonl")
HEARTBEAT_STALE = 60.0  # seconds after which a writer on another host is taken for dead


@dataclass(frozen=True)
class RunFolder:
    path: Path

    config_file = property(lambda self: self.path / "config.yaml")
    code = property(lambda self: self.path / "code")
    history_file = property(lambda self: self.path / "history.jsonl")
    lease_file = property(lambda self: self.path / "lease.json")
    heartbeat_file = property(lambda self: self.path / "heartbeat.json")
    launch_file = property(lambda self: self.path / "launch.json")
    data_file = property(lambda self: self.path / "data.json")
    checkpoints = property(lambda self: self.path / "checkpoints")
    metrics = property(lambda self: self.path / "metrics")
    samples = property(lambda self: self.path / "samples")
    figures = property(lambda self: self.path / "figures")
    logs = property(lambda self: self.path / "logs")
    evaluation_file = property(lambda self: self.path / "evaluation.json")

    @property
    def name(self) -> str:
        """``dismix/1f3a9c2e``: config name and identity."""
        return f"{self.path.parent.name}/{self.path.name}"

    def create(self) -> None:
        for folder in (self.checkpoints, self.metrics, self.samples, self.figures, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    # -- history ------------------------------------------------------------------------------------------------

    def record(self, event: str, **facts: Any) -> None:
        """Append one event; durable when this returns."""
        append_line(self.history_file, {"event": event, "time": round(time.time(), 3), **facts})

    def note(self, event: str, **facts: Any) -> None:
        """``record`` for what must not end a training: where the disk takes no more, the event is said instead of written down."""
        try:
            self.record(event, **facts)
        except OSError as error:
            told = ", ".join(f"{key} {value}" for key, value in facts.items())
            lost = f"warning: {self.history_file} cannot be written ({error.strerror}), so it lacks: {event} ({told})"
            print(lost, file=sys.stderr, flush=True)

    def history(self) -> list[dict[str, Any]]:
        return read_lines(self.history_file)[0]

    def last_end(self) -> dict[str, Any] | None:
        """The end of the newest attempt, or None where it has none: it runs, or was killed."""
        return last_end(self.history())

    def last_took(self) -> dict[str, float]:
        """The slowest step and save that an earlier attempt has measured, in seconds; empty where none has ended."""
        end = next((e for e in reversed(self.history()) if e["event"] == "end" and "slowest_save_s" in e), None)
        return {k.removesuffix("_s"): end[k] for k in ("slowest_step_s", "slowest_save_s")} if end else {}

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, by the folders' names; ``pipeline.checkpoint`` says whether they are good."""
        return sorted(int(p.name.removeprefix("step_")) for p in self.checkpoints.glob("step_*"))

    # -- who may write ------------------------------------------------------------------------------------------

    def claim_attempt(self) -> int:
        """Number a new attempt, which takes the lease. Whoever creates the attempt's journal first has the number.

        Raises RunFailed where nothing can be written.
        """
        try:
            attempt = self._new_journal()
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "process": processes.token()}
            if self.holds_lease(attempt):
                write_json(self.lease_file, {"attempt": attempt, "time": round(time.time(), 3), **holder})
        except OSError as error:
            raise RunFailed(
                f"{self.name} cannot begin an attempt ({error.strerror}: {error.filename}); make room or mend that, and launch again."
            ) from error
        return attempt

    def _new_journal(self) -> int:
        attempt = self._newest_attempt() + 1
        while True:
            try:
                os.close(os.open(self.journal_file(attempt), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                return attempt
            except FileExistsError:
                attempt += 1

    def holds_lease(self, attempt: int) -> bool:
        """False once a later attempt has taken over: the older writer must stop.

        ``lease.json`` may lag behind, never lead: it is looked at, too, because a shared file system may list a folder from its cache.
        """
        lease = read_json(self.lease_file)
        return attempt >= self._newest_attempt() and (lease is None or lease["attempt"] <= attempt)

    def _newest_attempt(self) -> int:
        with os.scandir(self.metrics) as entries:
            numbers = [int(match[1]) for entry in entries if (match := JOURNAL.fullmatch(entry.name))]
        return max(numbers, default=0)

    def journal_file(self, attempt: int) -> Path:
        return self.metrics / f"attempt_{attempt:03d}.jsonl"

    def writer(self) -> dict[str, Any] | None:
        """The lease of a process that is writing to this run now, or None. On another host its heartbeat decides.

        Of a run that was pulled from a cluster: as it was when the cluster was last asked.
        """
        lease, pulled = read_json(self.lease_file), self.pulled()
        if lease is None or lease.get("process") is None or self.last_end() is not None:  # older leases tell no process
            return None
        if pulled is None and processes.is_here(lease["process"]):
            return lease if processes.is_alive(lease["process"]) else None
        heard = max(lease["time"], (self.heartbeat() or lease)["time"])  # its first heartbeat comes when it trains
        now = pulled["time"] if pulled else time.time()
        return lease if now - heard < HEARTBEAT_STALE else None

    def pulled(self) -> dict[str, Any] | None:
        """Of a run that ``sync/pull.py`` brought: the ``host`` it is from, and the ``time`` there when that was last asked."""
        seen = read_json(self.path.parent.parent / ".sync" / "seen.json")
        return seen if isinstance(seen, dict) else None

    # -- progress -----------------------------------------------------------------------------------------------

    def beat(self, **facts: Any) -> None:
        """Replace the heartbeat. Not fsynced: it is worth nothing after a power cut."""
        write_json(self.heartbeat_file, {"time": round(time.time(), 3), **facts}, durable=False)

    def heartbeat(self) -> dict[str, Any] | None:
        return read_json(self.heartbeat_file)


def last_end(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The end of the newest attempt in ``history``, or None where it has none."""
    newest = next((e for e in reversed(history) if e["event"] in ("attempt", "end")), None)
    return newest if newest and newest["event"] == "end" else None


def list_runs(root: Path) -> list[RunFolder]:
    """All runs under ``root``, oldest first."""
    found = [p.parent for p in root.glob("*/*/history.jsonl") if RUN_ID.fullmatch(p.parent.name)]
    whole = [p for p in found if (p / "config.yaml").is_file()]
    dated = [(_modified(p / "history.jsonl"), p) for p in whole]
    return [RunFolder(p) for at, p in sorted(dated) if at]


def _modified(path: Path) -> float:
    """When ``path`` was written last; 0 where it has been removed meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def runs_root(given: str | None, profile: str | None = None) -> Path:
    """Where run folders lie: as typed, else as SLURMPHONY_RUNS or the cluster's profile say, else the project's own ``runs/``."""
    return Path(given or os.environ.get("SLURMPHONY_RUNS") or profile or RUNS).absolute()


def find_run(text: str, root: Path) -> RunFolder:
    """A run by folder, by name (``dismix/1f3a9c2e``), or by a config's name (its newest run); UserError where there is none."""
    for folder in (Path(text), root / text):
        if (folder / "config.yaml").is_file() and (folder / "history.jsonl").is_file():
            return RunFolder(folder.resolve())
    of_config = [run for run in list_runs(root) if run.path.parent.name == text]
    if of_config:
        newest, others = of_config[-1], [run.path.name for run in of_config[:-1]]
        if others:
            print(
                f"note: {newest.name} is the newest of {len(of_config)} runs; the others: {', '.join(others[-5:])}",
                file=sys.stderr,
            )
        return newest
    names = [run.name for run in list_runs(root)]
    if not names:
        raise UserError(f"no run '{text}': {root} holds no runs yet; start one with: python jobs/launch.py dismix_demo")
    raise UserError(f"no run '{text}' in {root}.{nearest(text, names)} Runs there: {', '.join(names[-10:])}.")
