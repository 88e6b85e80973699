"""Small writes that survive: a file is either the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any


def fsync_folder(folder: Path) -> None:
    """Make renames and creations in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hash_file(path: Path) -> str:
    """xxh3_128 of a file's bytes, in hex."""
    import hashlib  # late: it loads OpenSSL, and most commands hash nothing

    import xxhash

    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def write_atomic(path: Path, payload: bytes, *, durable: bool = True) -> None:
    """Write under a name of this process, then rename over ``path``. ``durable`` fsyncs file and folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        fsync_folder(path.parent)


def write_json(path: Path, tree: Any, *, durable: bool = True) -> None:
    write_atomic(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode(), durable=durable)


def without_nan(tree: Any, path: str = "") -> tuple[Any, list[str]]:
    """``tree`` with null for what JSON has no number for (NaN, infinities), and the dotted names of those."""
    if isinstance(tree, float) and not math.isfinite(tree):
        return None, [path]
    if not isinstance(tree, dict):
        return tree, []
    parts = {key: without_nan(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()}
    return {key: value for key, (value, _) in parts.items()}, [name for _, names in parts.values() for name in names]


def read_json(path: Path) -> Any:
    """The parsed file, or None where it does not exist or is not JSON (a reader must live beside a dying writer)."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def append_line(path: Path, tree: Any, *, durable: bool = True) -> None:
    """Append one JSON line in one write. A line torn by a killed writer is closed first, so that it cannot swallow this one.

    OSError where the disk took only a part of it.
    """
    line = json.dumps(tree, allow_nan=False).encode() + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = os.fstat(fd).st_size
        torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
        whole = b"\n" + line if torn else line
        if os.write(fd, whole) != len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: Path) -> tuple[list[Any], int]:
    """All whole JSON lines, and the number of broken ones (a kill can tear the last line of an attempt)."""
    rows: list[Any] = []
    broken = 0
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return rows, 0
    for line in raw.split(b"\n"):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError):
            broken += 1
    return rows, broken
