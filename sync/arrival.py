"""Bringing files from the cluster so that none is ever seen half: aside, compared with the cluster's own hash, then renamed.

    rsync --> .sync/incoming/<run>/<file> --same hash as there?--> <run>/<file>, and a line in the run's record

A kill at any moment leaves old files, new files, and at most something in ``incoming``, where the next pull goes on from.
A checkpoint that is new takes its name as one folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from sync.far import HASH, hash_all
from sync.host import Host
from sync.parts import CHECKPOINT, GROWING, MANIFEST, Files
from sync.progress import transfer
from sync.pulled import Pulled
from sync.record import Entry, Record
from sync.rsync import PARTIAL

ROUNDS = 3  # of fetching what changed on the way
TEMPORARY = re.compile(r"\.(.+)\.[A-Za-z0-9]{6}", re.DOTALL)  # rsync's name for a file on its way
RUN = re.compile(r"([^/]+/[^/]+)/(.+)", re.DOTALL)  # a file's name below the root: its run, and its name there


@dataclass
class Arrived:
    """What one transfer brought, and the names of what it did not: gone meanwhile, or changed at every look."""

    files: int = 0
    size: int = 0
    gone: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)


def bring(
    host: Host,
    there: str,
    pulled: Pulled,
    files: Files,
    what: str,
    options: Iterable[str] = (),
    *,
    afresh: bool = False,
) -> Arrived:
    """Fetch ``files`` (``<run>/<name>``, as listed there below the folder ``there``) into their places, verified, and record them.

    Args:
        what: for the progress line.
        options: more of rsync's.
        afresh: take nothing from the files that lie here; they are known to be wrong.
    """
    arrived = Arrived()
    tidy(pulled.incoming, files)
    wanted = dict(files)
    with transfer(what, sum(size for size, _ in files.values())) as told:
        for turn in range(ROUNDS):
            if not wanted:
                break
            if turn == 0 and not afresh:
                _lend(pulled, wanted)
            host.fetch(there, sorted(wanted), pulled.incoming, options=options, told=told)
            wanted = _take(host, there, pulled, wanted, arrived)
    arrived.unsteady = sorted(wanted)
    return arrived


def tidy(incoming: Path, files: Files) -> None:
    """Remove what earlier transfers left and this one does not want; a file that rsync was killed over is kept to go on with."""
    for parent, _, names in os.walk(incoming, topdown=False):
        folder = Path(parent)
        inner = folder.name == PARTIAL
        place = folder.parent if inner else folder
        for name in names:
            if str((place / name).relative_to(incoming)) in files:
                continue
            half = TEMPORARY.fullmatch(name)
            if not inner and half and str((folder / half[1]).relative_to(incoming)) in files:
                (folder / PARTIAL).mkdir(exist_ok=True)
                (folder / name).replace(folder / PARTIAL / half[1])
            else:
                (folder / name).unlink()
        if folder != incoming and not any(folder.iterdir()):
            folder.rmdir()


def _lend(pulled: Pulled, files: Files) -> None:
    """Put what lies here already under the incoming names (as links), so that only what is new travels: rsync never writes into a file."""
    root, incoming = str(pulled.root), str(pulled.incoming)
    for name in files:
        place, aside = os.path.join(root, name), os.path.join(incoming, name)
        if os.path.isfile(place) and not os.path.islink(place) and not os.path.exists(aside):
            os.makedirs(os.path.dirname(aside), exist_ok=True)
            try:
                os.link(place, aside)
            except OSError:  # a file system without hard links
                shutil.copy2(place, aside)


def _take(host: Host, there: str, pulled: Pulled, wanted: Files, arrived: Arrived) -> Files:
    """Give names to the files that are what they are there; returns those that must come again."""
    paths = {name: os.path.join(str(pulled.incoming), name) for name in wanted}
    staged = {name: os.path.getsize(path) for name, path in paths.items() if os.path.isfile(path)}
    lengths = [(name, staged[name] if _grows(name) else None) for name in sorted(staged)]
    # Of what did not come only whether it is there.
    lengths += [(name, 0) for name in sorted(wanted.keys() - staged.keys())]
    algorithm, replies = host.hashes(there, lengths)
    own = _own_hashes(pulled.incoming, staged, HASH)
    compared = own if algorithm == HASH else _own_hashes(pulled.incoming, staged, algorithm)
    good: Record = {}
    again: Files = {}
    for name, facts in replies:
        if facts is None:
            arrived.gone.append(name)
        elif name not in staged or compared[name] != facts[2]:
            again[name] = wanted[name]
        else:
            changed = facts[1] if facts[0] == staged[name] else -1
            good[name] = Entry(staged[name], own[name], changed, 0, "" if algorithm == HASH else facts[2])
        if name in staged and name not in good:
            os.unlink(paths[name])
    publish(pulled, good)
    arrived.files += len(good)
    arrived.size += sum(entry.size for entry in good.values())
    return again


def _grows(name: str) -> bool:
    match = RUN.fullmatch(name)
    return match is not None and GROWING.fullmatch(match[2]) is not None


def _own_hashes(folder: Path, names: Iterable[str], algorithm: str) -> dict[str, str]:
    hashed = hash_all(str(folder), [(name, None) for name in sorted(names)], algorithm)
    return {name: facts[2] for name, facts in hashed}


def publish(pulled: Pulled, entries: Record) -> None:
    """Rename files from ``incoming`` to their places, then note them: first journals and samples, a checkpoint's manifest last."""
    for name in _whole_checkpoints(pulled, entries):
        (pulled.root / name).parent.mkdir(parents=True, exist_ok=True)
        (pulled.incoming / name).rename(pulled.root / name)
    records: dict[str, Record] = {}
    root, incoming = str(pulled.root), str(pulled.incoming)
    for folder in {os.path.dirname(name) for name in entries}:
        os.makedirs(os.path.join(root, folder), exist_ok=True)
    for name in sorted(entries, key=lambda name: (name.endswith(f"/{MANIFEST}"), name)):
        place, aside = os.path.join(root, name), os.path.join(incoming, name)
        if os.path.exists(aside):
            os.replace(aside, place)
            with suppress(FileNotFoundError):
                os.unlink(aside)  # a lent file that came back unchanged: renaming a link to itself does nothing
        match = RUN.fullmatch(name)
        assert match is not None
        arrived = replace(entries[name], changed_here=os.stat(place).st_mtime_ns)
        records.setdefault(match[1], {})[match[2]] = arrived
    for run, record in records.items():
        pulled.write_record(run, {**pulled.record(run), **record})


def _whole_checkpoints(pulled: Pulled, entries: Record) -> set[str]:
    """Folders of checkpoints that are not here yet and can take their names at once, with all that is in them."""
    folders: dict[str, set[str]] = {}
    for name in entries:
        match = RUN.fullmatch(name)
        inner = match and CHECKPOINT.fullmatch(match[2])
        if match and inner:
            folders.setdefault(f"{match[1]}/checkpoints/{inner[1]}", set()).add(inner[2])
    return {
        folder
        for folder, names in folders.items()
        if not (pulled.root / folder).exists()
        and {path.name for path in (pulled.incoming / folder).iterdir()} == names
        and MANIFEST in names
    }
