"""One run as one HTML page that needs nothing else: curves, sounds, pictures, figures, config, attempts, environment.

Everything a run wrote is text here, never markup: the template escapes it, and the page allows no script and loads nothing.
"""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from monitoring.attempts import Attempt, events, read_attempts
from monitoring.curves import draw, frames
from monitoring.health import duration
from monitoring.ledger import Account, energy_of, spans_of
from monitoring.mirror import shown_files
from monitoring.overview import Reading
from monitoring.recent import read_recent
from monitoring.run_facts import leaves, tags_of
from monitoring.run_rows import figures
from monitoring.why import judge
from pipeline.config import read_yaml
from pipeline.files import read_json, read_lines
from pipeline.runs import RunFolder

TEMPLATE = Path(__file__).with_name("report.html")
LARGEST = 24 << 20  # bytes of sounds and pictures in one page
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".bmp"}


@dataclass
class Group:
    """The sounds and pictures of one folder of the run."""

    name: str
    sounds: list[dict[str, str]] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)


def render(run: RunFolder, other: RunFolder | None) -> str:
    """The page of ``run``, beside ``other`` where there is one. Raises UserError where its config cannot be read."""
    from jinja2 import Environment, StrictUndefined

    history = events(read_lines(run.history_file)[0])
    attempts = read_attempts(history)
    config = read_yaml(run.config_file)
    verdict = judge(run)
    account = Account()
    account.add(spans_of(run, history))
    account.energy = energy_of(run)
    groups, left_out = embedded(run)
    held = max(account.held, 1e-12)
    kinds = [kind for kind in account.hours if kind != "queued"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        name=run.name,
        other=other.name if other else None,
        system=str(config["model"]["system"]),
        state=verdict.state,
        verdict=verdict if verdict.cause else None,
        warnings=list(dict.fromkeys(str(e.get("message")) for e in history if e["event"] == "warning")),
        written=f"{datetime.now():%d %b %Y %H:%M}",
        cards=cards(run, attempts, account),
        curves=[{"name": f.name, "uri": uri} for f, uri in pictures_of_curves(run, other, attempts)],
        groups=groups,
        left_out=left_out,
        figures=evaluation(run, other),
        differences=differences(config, read_yaml(other.config_file)) if other else [],
        shares=[(kind, round(100 * account.hours[kind] / held, 3)) for kind in kinds],
        hours=[(kind, f"{account.hours[kind]:.3g}") for kind in account.hours],
        attempts=[row_of(attempt, attempts[i + 1 :]) for i, attempt in enumerate(attempts)],
        history=[(moment(e["time"]), e["event"], facts_of(e)) for e in history],
        environment=list(environment_of(run, history)),
        config=run.config_file.read_text(errors="replace"),
    )


def pictures_of_curves(run: RunFolder, other: RunFolder | None, attempts: Sequence[Attempt]) -> list[tuple[Any, str]]:
    """(frame, data URI) of every metric, the first one wide."""
    restarts = [attempt.after_step for attempt in attempts[1:]]
    found = frames(run, other, restarts)
    sizes = [(10.0, 3.4), *[(4.4, 2.4)] * (len(found) - 1)]
    return [(f, data_uri(draw(f, *size), "image/svg+xml")) for f, size in zip(found, sizes, strict=False)]


def data_uri(payload: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(payload).decode()}"


def embedded(run: RunFolder) -> tuple[list[Group], list[str]]:
    """The sounds and pictures of each folder, the newest first, as far as they fit; and the names of those that did not."""
    groups: dict[str, Group] = {}
    left_out = []
    room = LARGEST
    for name, path in sorted(shown_files(run), key=lambda item: (str(Path(item[0]).parent), item[0]), reverse=True):
        size = path.stat().st_size
        if size > room:
            left_out.append(name)
            continue
        room -= size
        folder = str(Path(name).parent)
        group = groups.setdefault(folder, Group(folder))
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        file = {"name": path.name, "uri": data_uri(path.read_bytes(), kind)}
        (group.pictures if path.suffix.lower() in PICTURES else group.sounds).insert(0, file)
    return list(groups.values()), left_out


def cards(run: RunFolder, attempts: Sequence[Attempt], account: Account) -> list[tuple[str, str]]:
    """The figures that one looks for first."""
    now = (run.heartbeat() or {}).get("time", 0.0)
    standing = Reading.of(run, now, mirrored=False, kept={}).standing(None, now)
    wall = sum(max(0.0, (a.ended or now) - a.born) for a in attempts)
    recent = read_recent(run.metrics)
    mfu, waits, peak = recent.mfu(), recent.data_wait(), recent.peak_memory()
    loss = standing.loss if isinstance(standing.loss, str) or standing.loss is None else f"{standing.loss:.4g}"
    shown = {
        "step": f"{standing.step or 0:,}" + (f" / {standing.total:,}" if standing.total else ""),
        "training loss": loss,
        f"best validation loss, step {standing.best_validation_step or 0:,}": (
            None if standing.best_validation is None else f"{standing.best_validation:.4g}"
        ),
        "GPU-hours held": f"{account.held:.3g}",
        "of them useful": f"{account.hours['useful'] / account.held:.0%}" if account.held else None,
        "energy of the GPUs": f"{account.energy:.3g} kWh" if account.energy else None,
        "of the peak arithmetic (MFU)": None if mfu is None else f"{mfu:.2g}" if mfu < 0.01 else f"{mfu:.0%}",
        "peak memory of a process": None if peak is None else f"{peak:.3g} GiB",
        "of the time waiting for data": None if waits is None else f"{waits:.1%}",
        "in all attempts": duration(wall) if wall else None,
        "attempts": str(len(attempts)),
        "processes": str(attempts[-1].world_size) if attempts else None,
    }
    return [(label, value) for label, value in shown.items() if value is not None]


def evaluation(run: RunFolder, other: RunFolder | None) -> list[dict[str, str]]:
    """A row for each figure of evaluation.json, with its interval, beside the other run's."""
    here, there = _figures(run), _figures(other) if other else {}
    rows = []
    for name in sorted(n for n in {*here, *there} if not n.endswith(("_low", "_high", "/count"))):
        mine, others = here.get(name), there.get(name)
        difference = "" if mine is None or others is None else f"{mine - others:+.4g}"
        rows.append({
            "name": name, "value": _number(mine), "interval": _interval(here, name), "other": _number(others),
            "other_interval": _interval(there, name), "difference": difference,
        })  # fmt: skip
    return rows


def _figures(run: RunFolder) -> dict[str, float]:
    tree = read_json(run.evaluation_file)
    return dict(figures(tree.get("figures", {}))) if isinstance(tree, dict) else {}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(found: Mapping[str, float], name: str) -> str:
    low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, value here, value there) where two configs differ."""
    mine, others = dict(leaves(here)), dict(leaves(there))
    keys = sorted(key for key in {*mine, *others} if mine.get(key) != others.get(key))
    return [(key, mine.get(key, ""), others.get(key, "")) for key in keys]


def row_of(attempt: Attempt, later: Sequence[Attempt]) -> dict[str, str]:
    """One attempt as the table shows it."""
    until = attempt.ended or (later[0].began if later else None)
    startup = sum(attempt.startup.values())
    how = attempt.how or ("killed" if later else "")
    return {
        "number": str(attempt.number),
        "began": moment(attempt.began),
        "after": f"{attempt.after_step:,}",
        "step": "" if attempt.step is None else f"{attempt.step:,}",
        "startup": f"{startup:.1f} s" if startup else "",
        "lasted": "" if until is None else duration(until - attempt.born),
        "how": f"{how}: {attempt.message}" if attempt.message else how,
        "where": f"{', '.join(attempt.nodes) or attempt.host}, {attempt.world_size} process{'es' * (attempt.world_size > 1)}"
        + (f", job {attempt.job}" if attempt.job else ""),
    }


def environment_of(run: RunFolder, history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the run was made with and where."""
    wanted = {
        "hosts": "hosts", "nodes": "nodes", "processes": "processes", "job_ids": "SLURM jobs", "data": "data's identity",
        "changes": "changed on the way", "mlflow.source.git.commit": "commit", "mlflow.source.git.dirty": "uncommitted changes",
        "code_hash": "hash of the code",
    }  # fmt: skip
    tags = tags_of(run, history, "", 0)
    launch = read_json(run.launch_file)
    launched = [(key, str(value)) for key, value in launch.items()] if isinstance(launch, dict) else []
    return [(label, tags[key]) for key, label in wanted.items() if tags.get(key)] + launched + arithmetic_of(history)


def arithmetic_of(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What a step computes, and the peak that its rate is held against."""
    counted = next((e for e in reversed(history) if e["event"] == "first_step" and e.get("flops")), None)
    if counted is None:
        return []
    a_step = f"{counted['flops'] / 1e9:.3g} GFLOP a step and process"
    return [("arithmetic", a_step), ("peak", f"{counted['peak_flops'] / 1e12:.3g} TFLOP/s ({counted['peak_from']})")]


def facts_of(event: Mapping[str, Any]) -> str:
    """An event's own facts in one line; a config is shown below."""
    own = {key: value for key, value in event.items() if key not in ("event", "time", "config")}
    text = json.dumps(own, default=str)[1:-1]
    return text if len(text) <= 400 else f"{text[:400]}..."


def moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%d %b %Y %H:%M:%S}"
