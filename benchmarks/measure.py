"""How benchmarks measure: work in turns by one clock, and a place for more small files than a disk forgets in time."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of this process alone, where others work here
MEMORY = Path("/dev/shm")  # a file system in main memory, where Linux has one
WARM = 2  # rounds that are not counted
ROOM = 4 << 30  # bytes that must be free there

Work = Callable[[], object]
Clock = Callable[[], float]


def seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    began = clock()
    work()
    return clock() - began


def in_turns(
    works: Mapping[str, Work], rounds: int, warm: int = 0, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each, round by round, each round beginning with another: what else runs on the machine meets all alike. ``warm`` rounds
    go before and are not counted."""
    found: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(warm + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            took = seconds(works[name], clock)
            if number >= warm:
                found[name].append(took)
    return found


def in_pairs(ours: Work, theirs: Work, rounds: int, clock: Clock, warm: int = WARM) -> tuple[list[float], list[float]]:
    """The same of two."""
    found = in_turns({"ours": ours, "theirs": theirs}, rounds, warm, clock)
    return found["ours"], found["theirs"]


def spread(values: Sequence[float]) -> str:
    """``1.02 (0.98 .. 1.10)``: median, least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def memory_folder() -> str | None:
    """A folder in main memory, where there is room; None: the system's place for temporary files is good enough."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM
    return str(MEMORY) if roomy else None


@contextmanager
def many_files(prefix: str) -> Iterator[Path]:
    """A folder that is gone afterwards, in main memory where there is room: a disk takes minutes to delete a hundred thousand files."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=memory_folder()) as folder:
        yield Path(folder)
