"""What MLflow is to show of one run, read from its folder: points, parameters, tags, state. Writes nothing and needs no MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from monitoring.run_rows import Change, Row, RunRows, milliseconds, name_of
from pipeline.config import read_yaml
from pipeline.files import read_lines
from pipeline.runs import RunFolder

PARAM_LENGTH = 6000  # MLflow's own limits
TAG_LENGTH = 8000
STATUS = {  # MLflow's word for a run's state; others are KILLED
    "complete": "FINISHED",
    "failed": "FAILED",
    "running": "RUNNING",
    "queued": "SCHEDULED",
    "created": "SCHEDULED",
}


@dataclass(frozen=True)
class RunFacts:
    """All that MLflow is to show of one run; ``change``: which of its rows are new since it was read before."""

    run_id: str
    name: str
    system: str
    state: str
    start: int
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    rows: set[Row]
    change: Change
    broken: int


def run_id_of(name: str, history: list[dict[str, Any]]) -> str:
    """The run's 32 hex digits. The moment of creation is part of it: two clusters may run one config, and both have its name."""
    born = next((event["time"] for event in history if event["event"] == "created"), None)
    return hashlib.sha256(f"slurmphony run {name} {born}".encode()).hexdigest()[:32]


def read_run(run: RunFolder, reader: RunRows | None = None) -> RunFacts:
    """Read all of a run; of its journals only what is new to ``reader``."""
    reader = reader or RunRows(run)
    history, broken = read_lines(run.history_file)
    config = read_yaml(run.config_file)
    change = reader.read()
    broken += reader.broken
    rows = reader.rows
    state, end = run_state(run, history)
    start = next((event["time"] for event in history), None) or run.config_file.stat().st_mtime
    if end is None and state == "killed":
        end = (run.heartbeat() or {}).get("time") or max((row[1] for row in rows), default=0) / 1000
    return RunFacts(
        run_id=run_id_of(run.name, history),
        name=run.name,
        system=str(config["model"]["system"]),
        state=state,
        start=milliseconds(start),
        end=None if end is None else milliseconds(end),
        params={name_of(key): cut(value, PARAM_LENGTH) for key, value in leaves(config)},
        tags={key: cut(value, TAG_LENGTH) for key, value in tags_of(run, history, state, broken).items() if value},
        rows=rows,
        change=change,
        broken=broken,
    )


def run_state(run: RunFolder, history: list[dict[str, Any]]) -> tuple[str, float | None]:
    """How the run stands, by its history, and when it ended. An attempt without an end runs, or was killed."""
    last = next((e for e in reversed(history) if e["event"] in ("attempt", "end", "queued", "requeued")), None)
    if last is None:
        return "created", None
    if last["event"] == "end":
        return str(last["reason"]), float(last["time"])
    if last["event"] != "attempt":
        return "queued", None
    return ("running" if run.writer() else "killed"), None


def tags_of(run: RunFolder, history: list[dict[str, Any]], state: str, broken: int) -> dict[str, str]:
    """What MLflow shows beside parameters and metrics; facts that change from attempt to attempt belong here."""
    attempts = [event for event in history if event["event"] == "attempt"]
    newest: dict[str, Any] = attempts[-1] if attempts else {}
    code: dict[str, Any] = next((event for event in reversed(history) if event["event"] == "code"), {})
    jobs = unique([e.get("job_id") for e in history if e["event"] in ("queued", "attempt")])
    dirty = code.get("uncommitted_changes")
    last: dict[str, Any] = next((e for e in reversed(history) if e["event"] in ("attempt", "end")), {})
    return {
        "state": state,
        "message": str(last.get("message") or ""),
        "attempts": str(len(attempts)),
        "resumed_after": unique([e["after_step"] for e in attempts[1:]]),
        "changes": "; ".join(
            f"after step {event['after_step']}: {key} {plain(change['from'])} -> {plain(change['to'])}"
            for event in history
            if event["event"] == "changed"
            for key, change in event["changes"].items()
        ),
        "hosts": unique([e.get("host") for e in attempts]),
        "job_ids": jobs,
        "nodes": str(newest.get("nodes") or ""),
        "processes": str(newest.get("world_size") or ""),
        "data": str(newest.get("data") or ""),
        "folder": str(run.path),
        "cluster": str((run.pulled() or {}).get("host") or ""),
        "code_hash": str(code.get("hash") or ""),
        "broken_lines": str(broken or ""),
        "mlflow.source.name": f"jobs/launch.py {run.path.parent.name}",
        "mlflow.source.type": "JOB" if jobs else "LOCAL",
        "mlflow.source.git.commit": str(code.get("commit") or ""),
        "mlflow.source.git.dirty": "" if dirty is None else plain(bool(dirty)),
    }


def unique(values: Iterable[Any]) -> str:
    """The values that are there, each once, in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A config's leaves as ``("optimizer.lr", "0.0003")``, named as ``--set`` names them."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def plain(value: Any) -> str:
    """A value as one would type it in the YAML file."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def cut(text: str, length: int) -> str:
    note = f"... ({len(text)} characters)"
    return text if len(text) <= length else text[: length - len(note)] + note
