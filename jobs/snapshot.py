"""The code a run is made with, frozen into its folder: uncommitted changes included, so that a queued job never changes under you."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import xxhash

PARTS = ("jobs", "pipeline", "models", "data_prep", "configs", "monitoring", "sync")
LARGEST = 1 << 20  # bytes a file; code is small, and what is larger was not meant


@dataclass(frozen=True)
class Snapshot:
    """``hash``: xxh3_128 over names and bytes. ``commit``: of the working tree, None outside git. ``left_out``: files too large."""

    hash: str
    commit: str | None
    changed: bool
    left_out: list[str]


def take(root: Path, target: Path) -> Snapshot:
    """Copy the project's code from ``root`` to ``target``. Where the code differs from what lies there, the old one is kept beside it."""
    files = _files(root)
    left_out = [str(f) for f in files if (root / f).stat().st_size > LARGEST]
    payloads = {f: (root / f).read_bytes() for f in files if str(f) not in left_out}
    digest = xxhash.xxh3_128()
    for name in sorted(payloads):
        digest.update(f"{name}\0{len(payloads[name])}\0".encode())
        digest.update(payloads[name])
    hash_ = digest.hexdigest()
    marker = target / ".hash"
    commit, changed = _commit(root)
    snapshot = Snapshot(hash_, commit, changed, left_out)
    if marker.is_file() and marker.read_text() == hash_:
        return snapshot
    fresh = target.with_name(f".{target.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    for name, payload in payloads.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    (fresh / ".hash").write_text(hash_)
    if target.exists():
        old = (target / ".hash").read_text()[:8] if (target / ".hash").is_file() else "unknown"
        kept = target.with_name(f"{target.name}_{old}")
        if kept.exists():
            shutil.rmtree(target)
        else:
            target.rename(kept)
    fresh.rename(target)
    return snapshot


def _git(root: Path, *words: str) -> str | None:
    """Output of a git command, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="surrogateescape")


def tracked_or_new(root: Path, *parts: str) -> list[Path]:
    """What git tracks or would take below ``root`` (in ``parts``; default: all), uncommitted changes included; empty outside git."""
    listed = _git(root, "ls-files", "-coz", "--exclude-standard", "--", *parts)
    return [Path(name) for name in sorted(set((listed or "").split("\0"))) if name and (root / name).is_file()]


def _files(root: Path) -> list[Path]:
    found = tracked_or_new(root, *PARTS)
    if not found:  # an unpacked archive, or a snapshot itself
        found = [
            p.relative_to(root)
            for part in PARTS
            for p in (root / part).rglob("*")
            if p.suffix in (".py", ".yaml", ".md")
        ]
    return sorted(found)


def _commit(root: Path) -> tuple[str | None, bool]:
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", *PARTS)
    return (commit.strip() if commit else None), bool(changed)
