"""Nodes that let a run down, kept out of its way for a day: ``<runs root>/excluded_nodes/<node>.json``.

A node gets there when it fails the gate (``jobs.gate``) or went down under a run. All runs of a runs root share the list: what one has
learnt spares the next. A node has a file of its own, so that runs that write at once lose nothing and need no lock. An entry expires by
itself; a file may be removed by hand at any time.
"""

from __future__ import annotations

import time
from pathlib import Path

from jobs.slurm_state import broken_nodes, usable_nodes
from pipeline.files import read_json, write_json
from pipeline.runs import RunFolder

HOURS = 24.0
FOLDER = "excluded_nodes"


def exclude(runs: Path, node: str, why: str, run: RunFolder) -> None:
    """Keep ``node`` out for a day."""
    (runs / FOLDER).mkdir(exist_ok=True)
    entry = {"until": round(time.time() + HOURS * 3600), "why": why, "run": run.name}
    write_json(runs / FOLDER / f"{node}.json", entry)


def excluded(runs: Path) -> dict[str, dict[str, object]]:
    """The nodes that are out now, with until when, why, and which run said so."""
    listed = {path.stem: read_json(path) for path in sorted((runs / FOLDER).glob("[!.]*.json"))}
    return {node: entry for node, entry in listed.items() if entry and entry["until"] > time.time()}


def to_exclude(runs: Path, partition: str | None, needed: int) -> list[str]:
    """The nodes a job of ``needed`` nodes should ask not to get. None where too few would be left: a bad node is better than none."""
    out = sorted(excluded(runs))
    if not out:
        return []
    left = usable_nodes(partition) - set(out)
    return out if len(left) >= needed else []


def note_lost(run: RunFolder) -> None:
    """At the start of an attempt: exclude the nodes of the one before that went down under it. SLURM's own requeue names none."""
    last = next((e for e in reversed(run.history()) if e["event"] in ("attempt", "end")), None)
    if last is None or last["event"] == "end":
        return
    for node, state in broken_nodes(tuple(last.get("node_names", ()))).items():
        exclude(run.path.parent.parent, node, f"it went {state} under attempt {last['attempt']}", run)
        run.record("node_excluded", node=node, why=f"went {state} under attempt {last['attempt']}")
