"""What is wrong with a run's files, and on which side the good one lies: rules without any reading or asking.

Three witnesses speak of a file: what was written down of it when it came (or, of a checkpoint's files, by the training when it wrote
them), what lies here, and what lies on the cluster. A side is good where it has the hash that was written down. The cluster
may have gone on since: a file that was changed there later is no fault, unless it is one that only ever grows and has shrunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sync.parts import CHECKPOINT, GROWING

Found = tuple[int, int, str]  # size, time of the last change in ns, hash
HERE, THERE = "here", "there"


@dataclass(frozen=True)
class Written:
    """What was written down of a file; ``there``: its time and hash on the cluster when it came, the hash by the cluster's algorithm."""

    size: int
    hash: str
    there: tuple[int, str] | None = None


@dataclass(frozen=True)
class Fault:
    """``kind``: damaged, truncated, too long, missing or extra. ``where``: the side it lies on. ``good``: the other side, if that is."""

    name: str
    kind: str
    where: str
    good: str | None = None


def judge(
    written: Mapping[str, Written], here: Mapping[str, Found], there: Mapping[str, Found] | None
) -> Iterator[Fault]:
    """All faults of one run. ``there``: None where the cluster was not asked."""
    for name in sorted(written.keys() | here.keys()):
        fact, own = written.get(name), here.get(name)
        far = None if there is None else there.get(name)
        if fact is None:
            if (
                far is None
            ):  # what lies on both sides and is not written down came just before a kill; the next pull does that
                yield Fault(name, "extra", HERE)
            continue
        wrong_here = _wrong(fact.size, fact.hash, own)
        wrong_there = None if there is None else _wrong_there(name, fact, far, there)
        far_is_good = there is not None and far is not None and wrong_there is None
        if wrong_here:
            yield Fault(name, wrong_here, HERE, THERE if far_is_good else None)
        if wrong_there:
            yield Fault(name, wrong_there, THERE, None if wrong_here else HERE)


def _wrong(size: int, hash_: str, found: Found | None) -> str | None:
    if found is None:
        return "missing"
    if found[0] != size:
        return "truncated" if found[0] < size else "too long"
    return None if found[2] == hash_ else "damaged"


def _wrong_there(name: str, fact: Written, far: Found | None, there: Mapping[str, Found]) -> str | None:
    """What is wrong with a file on the cluster; None also where it was rightly changed or removed since."""
    if far is None:
        return None if _pruned(name, there) else "missing"
    assert fact.there is not None, "only a pull gives the cluster something to be compared with"
    changed, hash_ = fact.there
    shrunk = GROWING.fullmatch(name) is not None and far[0] < fact.size
    later = far[1] != changed and CHECKPOINT.fullmatch(name) is None
    return None if later and not shrunk else _wrong(fact.size, hash_, far)


def _pruned(name: str, there: Mapping[str, Found]) -> bool:
    """Whether a file is gone with its whole folder, as old checkpoints and replaced code go."""
    match = CHECKPOINT.fullmatch(name)
    folder = f"checkpoints/{match[1]}/" if match else f"{name.partition('/')[0]}/"
    droppable = match is not None or folder.startswith("code")
    return droppable and not any(other.startswith(folder) for other in there)
