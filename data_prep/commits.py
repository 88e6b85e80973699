"""What is on disk of a dataset in the making: commit records, whole small files, and the folder for unfinished work.

A shard is committed by ``<name>.json``, renamed into place after its tar and its index: it carries the key that was planned for
it. A record with another key stands for other inputs, another recipe or older code, and counts as absent.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.plan import PlannedShard
from data_prep.shards import Written
from pipeline import processes
from pipeline.files import fsync_folder

WORK = ".work"  # claims and unfinished files, named after their process; gone after success
SHARD_SUFFIXES = (".tar", ".index.npy", ".json")


@dataclass(frozen=True)
class Committed:
    """A shard's commit record. ``quarantined``: input, split, reason."""

    name: str
    split: str
    key: str
    written: Written
    inputs: int
    quarantined: tuple[dict[str, str], ...]
    summary: dict[str, Any]

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), sort_keys=True, allow_nan=False) + "\n").encode()


def read_committed(folder: Path, name: str) -> Committed | None:
    """The commit record of a shard; None where there is none or it is not whole."""
    try:
        tree = json.loads((folder / f"{name}.json").read_bytes())
        written, quarantined = Written(**tree.pop("written")), tuple(tree.pop("quarantined"))
        return Committed(written=written, quarantined=quarantined, **tree)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return None


def done(folder: Path, shard: PlannedShard) -> Committed | None:
    """The record of ``shard`` where it is committed with the planned key."""
    record = read_committed(folder, shard.name)
    return record if record is not None and record.key == shard.key else None


def remove_shard(folder: Path, name: str) -> None:
    """Uncommit first, so that no record ever stands for a missing tar."""
    for suffix in reversed(SHARD_SUFFIXES):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def shard_files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.tar", folder / f"{name}.index.npy"


def publish(folder: Path, name: str, payload: bytes) -> None:
    """Write a small file whole: aside, durable, renamed."""
    work = folder / WORK
    work.mkdir(exist_ok=True)
    aside = work / f"{processes.token()}.{name}"
    with aside.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / name)
    fsync_folder(folder)
