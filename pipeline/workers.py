"""Worker processes for the loader: torch's DataLoader, made to die well.

The trainer's signals do not reach them, they never outlive the trainer, and where one dies, the trainer gets one
sentence where it asks for the next batch and not, as torch would have it, at whatever line it happens to be.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import RunFailed

AHEAD = 2  # items that each worker reads ahead
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def read_in_processes(items: Dataset[Any], numbers: Sequence[int], workers: int, pin_memory: bool) -> Iterator[Any]:
    """``items[n]`` for each number, in order, read by ``workers`` forked processes; ends them when it is closed.

    Raises RunFailed where a worker has died.
    """
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=AHEAD,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=partial(_start, os.getpid()),
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),  # else it draws from the global one, and the run's noise would depend on workers
    )
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    stream = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)  # torch's own raises in the main thread, in the middle of anything
    processes = set(multiprocessing.active_children()) - before
    while True:
        try:
            item = next(stream)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            for process in processes:
                if process.exitcode is not None:
                    raise RunFailed(_obituary(process.pid, process.exitcode)) from error
            raise
        yield item


def _unchanged(item: Any) -> Any:
    return item


def _start(parent: int, _worker: int) -> None:
    """Runs first in each worker (torch has already limited it to one thread)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # SLURM signals the whole job; the trainer decides what ends when
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)


def _obituary(pid: int | None, code: int) -> str:
    how = f"exited with code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (mostly for want of memory: lower data.workers or data.batch_size)"
    return f"Loader worker {pid} {how}; the same command goes on from the last checkpoint."
