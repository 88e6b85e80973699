"""Checkpoints written beside the training: neither the copy in main memory nor the disk keeps the loop from computing.

A thread copies what is to be saved while the next step computes its gradients, and whatever is about to change one of those tensors
waits for the copy first (``Saver.hold_still``; optimizers call it by a hook). Then the thread writes the copy. One checkpoint is
written at a time. While it is, the older ones stay as they are, so whatever ends the process loses nothing that was there before;
what lies half written has no checkpoint's name (``pipeline.checkpoint``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import checkpoint as checkpoints
from pipeline.checkpoint import Checkpoint, Leaf, put_tensors, take_leaves, tensor_of
from pipeline.config import Keep


@dataclass(frozen=True)
class Saved:
    """What came of a save: seconds that it kept the loop waiting, seconds from its begin to its end, why it failed if it did, and what
    could not be removed.
    """

    step: int
    waited: float
    seconds: float
    failure: OSError | None
    warnings: list[str]


class HostMemory:
    """Main memory for one checkpoint, kept from one save to the next: asking the system for it takes longer than filling it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._streams: dict[
            torch.device, torch.cuda.Stream
        ] = {}  # kept: memory that a copy needs on the way belongs to its stream

    def fill(self, leaves: Mapping[str, Tensor], ready: list[torch.cuda.Event]) -> dict[str, Tensor]:
        """Copies by the same names, valid until the next call; from GPUs on streams of their own, after ``ready``."""
        self._buffers = {name: self._buffer(name, tensor) for name, tensor in leaves.items()}
        for device in {tensor.device for tensor in leaves.values() if tensor.is_cuda}:
            self._streams.setdefault(device, torch.cuda.Stream(device))
        for stream in self._streams.values():
            for event in ready:
                stream.wait_event(event)
        for name, tensor in leaves.items():
            if not tensor.is_cuda:
                _copy(self._buffers[name], tensor)
                continue
            with torch.cuda.stream(self._streams[tensor.device]):
                self._buffers[name].copy_(tensor, non_blocking=True)
        for stream in self._streams.values():
            stream.synchronize()
        return self._buffers

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and old.shape == like.shape and old.dtype == like.dtype:
            return old
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)


def _copy(buffer: Tensor, tensor: Tensor) -> None:
    """By one thread: it is bound by the memory, and OpenMP's threads wait for each other where the cores are busy."""
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        buffer.reshape(-1).view(torch.uint8).numpy()[:] = tensor.reshape(-1).view(torch.uint8).numpy()
    else:
        buffer.copy_(tensor)


def _after_what_is_queued(tensors: Iterable[Tensor]) -> list[torch.cuda.Event]:
    """For each GPU that holds one of ``tensors`` an event behind all that it has been told to compute so far."""
    return [torch.cuda.current_stream(device).record_event() for device in {t.device for t in tensors if t.is_cuda}]


class Saver:
    """Writes a run's checkpoints into ``folder``; with ``keep`` this rank removes the old ones, too.

    Within its block; at the end of it nothing is being written any more.
    """

    def __init__(self, folder: Path, keep: Keep | None) -> None:
        self.folder, self._keep = folder, keep
        self._memory = HostMemory()
        self._thread = ThreadPoolExecutor(1, "saver")
        self._copying: Future[dict[str, Tensor]] | None = None
        self._writing: Future[Saved] | None = None
        self._waited = 0.0

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    def beside(self, checkpoint: Checkpoint) -> None:
        """Copy and write it beside what comes next; its tensors must not change before ``hold_still`` has returned."""
        assert self._writing is None, "the outcome of the last save was not asked for"
        began = time.perf_counter()
        leaves: dict[str, Leaf] = {}
        skeletons = {name: take_leaves(part, leaves, name) for name, part in checkpoint.parts.items()}
        tensors = {
            name: leaf.detach() if isinstance(leaf, Tensor) else tensor_of(leaf) for name, leaf in leaves.items()
        }
        copying = self._thread.submit(self._memory.fill, tensors, _after_what_is_queued(tensors.values()))

        def write() -> None:
            copies = copying.result()
            parts = {name: put_tensors(skeleton, copies.__getitem__) for name, skeleton in skeletons.items()}
            checkpoints.save(self.folder, Checkpoint(checkpoint.step, parts, checkpoint.state))

        self._copying = copying
        self._writing = self._thread.submit(self._write, checkpoint.step, write, began)
        self._waited = time.perf_counter() - began

    def hold_still(self, *_: object) -> None:
        """Return when nothing is being copied: call it before one of the tensors that are saved changes."""
        if self._copying is not None:
            began = time.perf_counter()
            self._copying.exception()  # whatever came of it is told where the outcome is
            self._copying = None
            self._waited += time.perf_counter() - began

    def here(self, step: int, write: Callable[[], Any]) -> None:
        """Write now, by ``write``, in this thread: where ranks write together."""
        began = time.perf_counter()
        self._writing = Future()
        self._writing.set_result(self._write(step, write, began))
        self._waited = time.perf_counter() - began

    def outcome(self, *, wait: bool) -> Saved | None:
        """What came of the last save, told once; None where there is none, or (``wait`` False) where it is still being written."""
        if self._writing is None or not (wait or self._writing.done()):
            return None
        began = time.perf_counter()
        saved = self._writing.result()
        self._writing = self._copying = None
        return replace(saved, waited=self._waited + time.perf_counter() - began)

    def _write(self, step: int, write: Callable[[], Any], began: float) -> Saved:
        failure, warnings = None, []
        try:
            write()
        except OSError as error:
            failure = error
        if self._keep is not None:
            try:
                warnings = checkpoints.sweep(self.folder) if failure else checkpoints.prune(self.folder, self._keep)
            except OSError as error:
                failure = failure or error
        return Saved(step, 0.0, time.perf_counter() - began, failure, warnings)
