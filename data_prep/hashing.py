"""Content hashes of all inputs, found together by whoever prepares the same dataset: on many nodes no file is read twice.

The files are dealt into chunks. A process claims a chunk, hashes it in threads and publishes the result in the work folder; what
others hold it waits for. Results are named by the attempt they belong to: within it they are trusted, a later attempt looks at every
file's size and times again and reads those that changed.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.claims import Claims
from data_prep.stage import Input, InputFile
from pipeline.files import hash_file

CHUNK = 256  # files
POLL = 0.2  # seconds between looks at chunks that others have claimed
Facts = list[Any]  # size, mtime and ctime in ns, xxh3_128 of a file; empty where it could not be read
Found = dict[str, Facts]  # by the file's path


def hash_inputs(
    inputs: Iterable[Input],
    source: Path,
    work: Path,
    attempt: str,
    workers: int,
    progress: Callable[[int, int], None],
) -> list[Input]:
    """``inputs`` with every file's size and content hash; an unreadable file keeps an empty hash.

    Args:
        work: the work folder, which all who share the attempt see.
        attempt: what the results are named by; a word without a dot.
        workers: threads.
        progress: told the number of files hashed, and of all.
    """
    inputs = list(inputs)
    paths = list(dict.fromkeys(file.path for item in inputs for file in item.files))
    known = _earlier(work)
    chunks = [(name(attempt, at // CHUNK), paths[at : at + CHUNK]) for at in range(0, len(paths), CHUNK)]
    found: Found = {}
    claims = Claims(work)
    random.Random(claims.token).shuffle(chunks)  # those who begin together do not go for the same one
    try:
        with ThreadPoolExecutor(max(1, workers)) as pool:

            def hashed(members: list[str]) -> Found:
                facts = pool.map(lambda path: _facts(source / path, known.get(path)), members)
                return dict(zip(members, facts, strict=True))

            while chunks:
                left = []
                for chunk, members in chunks:
                    result = _published(work / chunk, members) or _make(work / chunk, members, claims, hashed)
                    if result is None:
                        left.append((chunk, members))
                        continue
                    found |= result
                    progress(len(found), len(paths))
                if len(left) == len(chunks):
                    time.sleep(POLL)
                chunks = left
    finally:
        claims.close()
    return [replace(item, files=tuple(_hashed(f.path, found[f.path]) for f in item.files)) for item in inputs]


def _make(path: Path, members: list[str], claims: Claims, hashed: Callable[[list[str]], Found]) -> Found | None:
    """A chunk's result, found and published by this process; None where another has claimed it."""
    if not claims.take(path.name):
        return None
    try:
        result = _published(path, members)  # its owner may have finished in between
        if result is None:
            result = hashed(members)
            aside = path.with_name(f"{claims.token}.{path.name}")
            aside.write_text(json.dumps(result))
            aside.replace(path)  # whole, but not durable: what a power cut takes is found again
        return result
    finally:
        claims.drop(path.name)


def name(attempt: str, chunk: int) -> str:
    return f"hashes.{attempt}.{chunk:06d}"


def files_hashed(work: Path) -> int:
    """How many files' hashes lie in a work folder, whoever found them and when."""
    return len(_earlier(work))


def forget_others(work: Path, attempt: str) -> None:
    """Remove the results of earlier attempts: what of them was still true is among this attempt's."""
    for path in work.glob("hashes.*"):
        if path.suffix != ".claim" and not path.name.startswith(f"hashes.{attempt}."):
            path.unlink(missing_ok=True)


def _earlier(work: Path) -> Found:
    found: Found = {}
    for path in sorted(work.glob("hashes.*")):
        found |= _read(path) if path.suffix != ".claim" else {}
    return found


def _published(path: Path, members: list[str]) -> Found | None:
    """A chunk's result; None where there is none for just these files (another may have listed a folder that changed since)."""
    found = _read(path)
    return found if found and list(found) == members else None


def _read(path: Path) -> Found:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _facts(path: Path, known: Facts | None) -> Facts:
    """A file's facts; it is read only where ``known`` does not fit what the file system says of it."""
    try:
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        return [*seen, known[-1] if known and known[:-1] == seen else hash_file(path)]
    except OSError:
        return []


def _hashed(path: str, facts: Facts) -> InputFile:
    return InputFile(path, facts[0], facts[-1]) if facts else InputFile(path)
