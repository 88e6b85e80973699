"""What MLflow is to show of one run, read from its folder: points, parameters, tags, state. Writes nothing and needs no MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import read_yaml
from pipeline.files import read_json, read_lines
from pipeline.journal import read_journals
from pipeline.runs import RunFolder

Row = tuple[str, int, int, float, int]  # metric, time in ms, step, value, is NaN: the order of MLflow's primary key

PARAM_LENGTH = 6000  # MLflow's own limits
TAG_LENGTH = 8000
NAME_LENGTH = 250
LARGEST = 1.7976931348623157e308  # what MLflow stores for infinity
STRANGE = re.compile(r"[^\w\-. /:]")  # what MLflow does not take in a metric's or parameter's name


@dataclass(frozen=True)
class RunFacts:
    """All that MLflow is to show of one run."""

    run_id: str
    name: str
    system: str
    state: str
    start: int
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    rows: set[Row]
    broken: int


def run_id_of(name: str, history: list[dict[str, Any]]) -> str:
    """The run's 32 hex digits. The moment of creation is part of it: two clusters may run one config, and both have its name."""
    born = next((event["time"] for event in history if event["event"] == "created"), None)
    return hashlib.sha256(f"slurmphony run {name} {born}".encode()).hexdigest()[:32]


def read_run(run: RunFolder) -> RunFacts:
    history, broken = read_lines(run.history_file)
    config = read_yaml(run.config_file)
    broken += sum(read_lines(path)[1] for path in run.metrics.glob("attempt_*.jsonl"))
    rows = journal_rows(run) | evaluation_rows(run)
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
        broken=broken,
    )


def journal_rows(run: RunFolder) -> set[Row]:
    """Every point of the journals as MLflow's metrics table holds it; replayed steps are dropped by the reader."""
    names: dict[str, str] = {}
    rows = set()
    for point in read_journals(run.metrics):
        at = milliseconds(point.time)
        for name, value in point.metrics.items():
            key = names.get(name) or names.setdefault(name, name_of(name))
            rows.add((key, at, point.step, *stored(value)))
    return rows


def evaluation_rows(run: RunFolder) -> set[Row]:
    """evaluation.json as metrics: ``evaluation/<figure>``, an interval's ends as ``..._low`` and ``..._high``."""
    tree = read_json(run.evaluation_file)
    if not isinstance(tree, dict):
        return set()
    at = milliseconds(run.evaluation_file.stat().st_mtime)
    return {
        (name_of(f"evaluation/{name}"), at, int(tree.get("step", 0)), *stored(float(value)))
        for name, value in figures(tree.get("figures", {}))
    }


def figures(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among an evaluation's figures, nested ones under ``a/b``; ``{"value", "low", "high"}`` is one with its interval."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            interval = {"": value.get("value"), "_low": value.get("low"), "_high": value.get("high")}
            nested = {f"{path}{end}": number for end, number in interval.items()} if "value" in value else None
            yield from figures(nested) if nested else figures(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


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


def name_of(name: str) -> str:
    """A name that MLflow's pages and its API take."""
    return STRANGE.sub("_", name)[:NAME_LENGTH]


def stored(value: float) -> tuple[float, int]:
    """A value and its NaN mark, as MLflow stores them."""
    if math.isnan(value):
        return 0.0, 1
    return min(max(value, -LARGEST), LARGEST), 0


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
