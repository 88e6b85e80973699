"""The most memory that a rank has held so far: what torch's allocator says of a GPU, what the kernel says of a process on a CPU.

Both are counted on the host as memory is taken, so to ask makes no device wait. A rank tells its own in ``ranks/``, rank 0 journals the
largest of all.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

GIB = 2**30


def held(device: torch.device) -> dict[str, int]:
    """Bytes. ``peak``: the most that was in use, of a GPU by tensors, else by the process. ``peak_reserved``: of a GPU, with what the
    allocator keeps for later. ``resident``: of the process, now.
    """
    if device.type == "cuda":
        found = torch.cuda.memory_stats(device)
        names = {"peak": "allocated_bytes.all.peak", "peak_reserved": "reserved_bytes.all.peak"}
        return {name: int(found.get(key, 0)) for name, key in names.items()}
    return _of_process()


def _of_process() -> dict[str, int]:
    """Linux's ``ru_maxrss`` is at least what the parent held, so the process's own page is read: once for both, which is cheap."""
    if sys.platform == "darwin":
        return {
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "resident": psutil.Process().memory_info().rss,
        }
    page = Path("/proc/self/status").read_text()
    kibibytes = {word: int(page.partition(word)[2].split(maxsplit=1)[0]) for word in ("VmHWM:", "VmRSS:")}
    return {"peak": 1024 * kibibytes["VmHWM:"], "resident": 1024 * kibibytes["VmRSS:"]}


def largest(of_ranks: Iterable[dict[str, int] | None]) -> dict[str, float]:
    """What is journalled, in GiB: of each figure the largest over ranks."""
    most: dict[str, int] = {}
    for rank in of_ranks:
        for name, size in (rank or {}).items():
            most[name] = max(size, most.get(name, 0))
    return {f"memory/{name}_gib": size / GIB for name, size in most.items()}
