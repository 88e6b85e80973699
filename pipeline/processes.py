"""Which process wrote this, and is it still there? A pid alone is used again, and a clock that is set moves times of start."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import psutil

TOKEN = re.compile(r"[\w-]+~\d+~\d+")


def token(pid: int | None = None) -> str:
    """``host~pid~start``: also tells this process from an earlier one that had the same pid. Fit for a file name.

    Raises psutil.NoSuchProcess.
    """
    return f"{host()}~{pid or os.getpid()}~{_started(pid or os.getpid())}"


def host() -> str:
    """This host's name as it stands in a token."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())


def is_here(token: str) -> bool:
    """Whether the process lives or lived on this host, so that the kernel can be asked for it."""
    return token.split("~")[0] == host()


def is_alive(owner: str) -> bool:
    """Whether a process of this host is still there; one that has ended and waits for its parent is not."""
    try:
        pid = int(owner.split("~")[1])
        return token(pid) == owner and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> int:
    """When a process began, in a clock that nobody sets: ticks since boot on Linux. Raises psutil.NoSuchProcess."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return round(psutil.Process(pid).create_time() * 1000)  # no /proc here, or no such process
    return int(stat.rpartition(")")[2].split()[19])
