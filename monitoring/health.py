"""What is wrong with a run, or may be soon, in words for a person; the worst first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from monitoring.attempts import Attempt
from monitoring.recent import Recent

SLOW = -0.25  # of its own usual rate
WAITS = 0.2  # share of the time that goes into waiting for data
RECENTLY = 24 * 3600.0  # how long an incident of a run that goes on is shown
CHECKPOINT_AGE = 6 * 3600.0  # work that nobody wants to do again

WHY = {
    "warned": "out of time",
    "terminated": "terminated from outside",
    "interrupted": "stopped by hand",
}


@dataclass(frozen=True)
class Signs:
    """What a run shows of itself. ``checkpoint``: when the newest was written; ``why``: what is known of its end."""

    name: str
    history: list[dict[str, Any]]
    attempts: list[Attempt]
    heartbeat: dict[str, Any]
    recent: Recent
    checkpoint: float | None
    now: float
    state: str
    why: str


def health(signs: Signs) -> list[str]:
    """Sentences, the worst first; empty where nothing is to be said."""
    found = [signs.why] if signs.why else []
    if signs.state == "silent":
        found.append(f"not heard of for {duration(signs.now - signs.heartbeat.get('time', signs.now))}")
    if signs.state == "running":
        found += _training(signs)
    found += _incidents(signs)
    return list(dict.fromkeys(found))


def reason_of_end(event: dict[str, Any]) -> str:
    """Why an attempt ended, from its end event."""
    reason = str(event.get("reason", ""))
    return str(event.get("message") or WHY.get(reason, reason))


def _training(signs: Signs) -> list[str]:
    """Of a run that trains now."""
    found = []
    loss = signs.recent.loss
    if loss is not None and not math.isfinite(loss):
        found.append(f"the loss is {loss}")
    last = signs.recent.last
    began = signs.attempts[-1].began
    silent = signs.now - max(last[1] if last else 0.0, began)
    if silent > signs.recent.patience():
        found.append(f"nothing new for {duration(silent)}")
    found += map(str, signs.heartbeat.get("warnings") or ())
    rate = signs.recent.rate()
    if rate and rate[1] is not None and rate[1] < SLOW:
        found.append(f"slow: {1 + rate[1]:.0%} of its usual rate")
    waits = signs.recent.data_wait()
    if waits is not None and waits > WAITS:
        found.append(f"waits {waits:.0%} of the time for data")
    saved = max(signs.checkpoint or 0.0, began)
    if signs.now - saved > CHECKPOINT_AGE:
        found.append(f"nothing saved for {duration(signs.now - saved)}")
    return found


def _incidents(signs: Signs) -> list[str]:
    """What has happened to it lately; of a run that is complete nothing matters any more."""
    if signs.state == "complete":
        return []
    found: dict[str, str] = {}
    faults = 0
    newest_save = signs.checkpoint or 0.0
    for event in signs.history:
        if signs.now - event["time"] > RECENTLY:
            continue
        kind = event["event"]
        if kind == "hung":
            silent = duration(float(event.get("silent_s", 0)))
            found.setdefault(
                f"hung {event.get('after_step')}",
                f"hung for {silent} after step {event.get('after_step', 0):,} (rank {event.get('rank')}); stacks saved",
            )
        elif kind == "rolled_back":
            found[kind] = f"{event.get('message')} at step {event.get('step', 0):,}: rolled back"
        elif kind == "save_failed" and event["time"] > newest_save:
            found[kind] = f"a checkpoint could not be written at step {event.get('step', 0):,}"
        elif kind == "checkpoint_rejected":
            found[kind] = "a damaged checkpoint was set aside"
        elif kind == "node_excluded":
            found[f"{kind} {event.get('node')}"] = f"node {event.get('node')} left out: {event.get('why')}"
        elif kind == "data_fault":
            faults += 1
        elif kind == "rank_ended" and signs.state == "killed" and event["time"] >= signs.attempts[-1].began:
            how = event.get("signal") or f"exit code {event.get('exit_code')}"
            found[kind] = f"rank {event.get('rank')} ended with {how}: python monitoring/why.py {signs.name}"
    if faults:
        found["data_fault"] = f"damaged samples replaced: {faults}"
    return list(reversed(found.values()))


def duration(seconds: float) -> str:
    """A time span in its largest unit: 40 s, 14 min, 9 h, 6 d."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
