"""A few steps under torch's profiler, on request: ``--set trainer.profile.steps=5``.

    profile/attempt_003_rank_0_step_11.pt.trace.json.gz

The trace opens in https://ui.perfetto.dev (drop the file there; it does not leave the browser) and in TensorBoard's profiler plugin. Each
step is a range ``ProfilerStep#<step>``, as torch's own tools expect, with ``data`` and ``optimize`` in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from pipeline.config import Profile
from pipeline.runs import RunFolder
from pipeline.world import World

NOTHING: AbstractContextManager[Any] = nullcontext()


class StepProfiler:
    """``begin`` is called before every step; where nothing is asked for, or all is done, it costs a comparison.

    Args:
        start: the step after which this attempt begins.
    """

    def __init__(self, run: RunFolder, section: Profile, world: World, start: int, device: torch.device) -> None:
        self._run, self._rank, self._device = run, world.rank, device
        wanted = section.steps if world.rank in section.ranks else 0
        self._first = start + 1 + section.skip if wanted else sys.maxsize
        self._end = self._first + wanted  # the step before which it is written
        self._next = self._first  # the step at which something is to be done
        self._profile: Any = None
        self._step = ExitStack()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within the block steps are profiled; one that ends early leaves what there is."""
        try:
            yield
        finally:
            if self._profile:
                self._write()

    def begin(self, step: int) -> None:
        if step < self._next:
            return
        self._step.close()
        if step >= self._end:
            self._write()
            return
        if self._profile is None:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
            self._profile = torch.profiler.profile(activities=kinds)
            self._profile.start()
        self._step.enter_context(record_function(f"ProfilerStep#{step}"))
        self._next = step + 1

    def part(self, name: str) -> AbstractContextManager[Any]:
        """A named range within a step."""
        return NOTHING if self._profile is None else record_function(name)

    def _write(self) -> None:
        """A disk that takes no more costs the trace and not the training."""
        profile, self._profile, self._next = self._profile, None, sys.maxsize
        self._step.close()
        profile.stop()
        name = f"attempt_{self._run.newest_attempt():03d}_rank_{self._rank}_step_{self._first}.pt.trace.json.gz"
        path = self._run.profile / name
        unfinished = path.with_name(f".{name}")
        try:
            path.parent.mkdir(exist_ok=True)
            profile.export_chrome_trace(str(unfinished))
            unfinished.replace(path)
            print(f"profile: {path} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr, flush=True)
        except (OSError, RuntimeError) as error:
            print(f"warning: {path} cannot be written ({error}); training goes on", file=sys.stderr, flush=True)
