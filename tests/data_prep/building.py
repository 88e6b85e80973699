"""Prepare in this process and read back all that came out: what the tests of every dataset do."""

import hashlib
from pathlib import Path

from data_prep.engine import prepare
from data_prep.finish import finish
from data_prep.stage import Stage
from pipeline.manifest import read_manifest
from pipeline.shards import ShardReader, decode, members


def build(source: Path, folder: Path, stage: Stage, workers: int = 0) -> tuple[Path, dict[str, str]]:
    """The prepared folder, and the quarantined inputs with their reasons; up to three quarters of the inputs may be bad."""
    plan, _ = prepare(stage, source, folder, workers, 0.75)
    return folder, {entry["input"]: entry["reason"] for entry in finish(stage, plan, folder)}


def samples(folder: Path, split: str | None = None) -> list[dict]:
    """Every sample decoded, with its ``split``."""
    manifest, found = read_manifest(folder), []
    for shard in manifest.shards:
        if split in (None, shard.split):
            reader = ShardReader(folder, shard)
            found += [{**decode(members(reader.read(row))), "split": shard.split} for row in range(len(reader))]
            reader.close()
    return found


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file by its path."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }
