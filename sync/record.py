"""What was written down of a run's files as they came: one sealed file a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.files import write_atomic
from pipeline.manifest import sealed, unsealed

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One file as it came: its size, xxh3_128, and when it was changed last, in ns: there (-1: it has grown since) and here.

    ``other``: its blake2b, where the cluster's Python had no xxhash to compare it by.
    """

    size: int
    hash: str
    changed_there: int
    changed_here: int
    other: str = ""


Record = dict[str, Entry]  # by name within the run


def read_record(path: Path) -> Record:
    """What came of a run; empty where nothing did. ValueError where the file is damaged."""
    try:
        tree = unsealed(path.read_bytes())
    except FileNotFoundError:
        return {}
    if tree["format"] != FORMAT:
        raise ValueError(f"it is of format {tree['format']}, this version reads {FORMAT}")
    return {name: Entry(*facts) for name, facts in tree["files"].items()}


def write_record(path: Path, run: str, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {name: list(vars(entry).values()) for name, entry in sorted(record.items())}
    write_atomic(path, sealed({"format": FORMAT, "run": run, "files": files}))
