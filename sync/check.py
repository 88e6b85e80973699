"""Reading what there is to read of a run, here and there, and judging it (``sync.judge``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import RunFailed
from pipeline.files import read_json
from sync.far import HASH, hash_all, list_files
from sync.host import Host
from sync.judge import HERE, Fault, Found, Written, judge
from sync.parts import CHECKPOINT, MANIFEST, below
from sync.pulled import Pulled
from sync.record import Entry, Record


@dataclass
class Checked:
    """What was found of one run. ``unknown``: files of which nothing was written down, so that nothing can be said."""

    run: str
    faults: list[Fault] = field(default_factory=list)
    files: int = 0
    size: int = 0
    unknown: int = 0
    record: Record = field(default_factory=dict)


@dataclass(frozen=True)
class Far:
    """What the cluster says of the files of one run, and by which hash."""

    algorithm: str
    found: dict[str, Found]


def read_here(folder: Path, tops: list[str]) -> dict[str, Found]:
    """Size, time and xxh3_128 of every file of a run on this machine."""
    names = [(name, None) for name in list_files(str(folder), tops)]
    return {name: tuple(facts) for name, facts in hash_all(str(folder), names, HASH) if facts}


def read_there(host: Host, root: str, asked: dict[str, list[str]]) -> Callable[[], dict[str, Far]]:
    """The same of files on the cluster, by run: ``asked`` are their names. Every byte is read there.

    Returns a function that waits for it: the cluster reads while this side does.
    """
    runs = {f"{run}/{name}": (run, name) for run, names in asked.items() for name in names}
    algorithm, replies = host.hashes(root, [(path, None) for path in runs])

    def wait() -> dict[str, Far]:
        said = {run: Far(algorithm, {}) for run in asked}
        for path, facts in replies:
            run, name = runs[path]
            if facts:
                said[run].found[name] = tuple(facts)
        return said

    return wait


def check_own(folder: Path, run: str, tops: list[str]) -> Checked:
    """Judge a run that was made on this machine: of its checkpoints, for only they have manifests."""
    here = read_here(folder, tops)
    written, faults = trained(folder)
    known = {name: found for name, found in here.items() if name in written or _in_checkpoint(name)}
    checked = Checked(run, [*faults, *judge(written, known, None)], len(here), _size(here))
    checked.unknown = len(here.keys() - written.keys())
    return checked


def check_pulled(pulled: Pulled, run: str, tops: list[str], here: dict[str, Found], far: Far | None) -> Checked:
    """Judge a run that was pulled by what was read of it here, alone or with what the cluster says."""
    try:
        record = {name: entry for name, entry in pulled.record(run).items() if below(name, tops)}
    except (ValueError, KeyError, TypeError):
        path = str(pulled.record_file(run).relative_to(pulled.root))
        return Checked(run, [Fault(path, "damaged", HERE)], len(here), _size(here), unknown=len(here))
    written = {name: Written(e.size, e.hash, _there(e, far)) for name, e in record.items()}
    # The training's own word on a checkpoint goes before that of the pull, where its manifest is the one that came.
    for name, entry in trained(pulled.root / run)[0].items():
        manifest = f"{name.rpartition('/')[0]}/{MANIFEST}"
        intact = manifest in record and manifest in here and here[manifest][2] == record[manifest].hash
        if name in written and intact:
            other = written[name].there
            trusted = other if far is None or far.algorithm != HASH or other is None else (other[0], entry.hash)
            written[name] = replace(entry, there=trusted)
    return Checked(run, list(judge(written, here, far.found if far else None)), len(here), _size(here), record=record)


def _there(entry: Entry, far: Far | None) -> tuple[int, str] | None:
    if far is None:
        return None
    hash_ = entry.hash if far.algorithm == HASH else entry.other
    if not hash_:
        raise RunFailed("the cluster's Python has no xxhash, which it had at the pull; type there: make setup")
    return entry.changed_there, hash_


def trained(folder: Path) -> tuple[dict[str, Written], list[Fault]]:
    """What the training wrote down of its checkpoints' files; manifests that cannot be read are faults."""
    written, faults = {}, []
    for path in sorted((folder / "checkpoints").glob(f"step_*/{MANIFEST}")):
        step = f"checkpoints/{path.parent.name}"
        try:
            for name, entry in read_json(path)["files"].items():
                written[f"{step}/{name}"] = Written(int(entry["size"]), str(entry["xxh3_128"]))
        except (TypeError, KeyError, ValueError, AttributeError):
            faults.append(Fault(f"{step}/{MANIFEST}", "damaged", HERE))
    return written, faults


def _in_checkpoint(name: str) -> bool:
    match = CHECKPOINT.fullmatch(name)
    return match is not None and match[2] != MANIFEST


def _size(found: dict[str, Found]) -> int:
    return sum(size for size, *_ in found.values())
