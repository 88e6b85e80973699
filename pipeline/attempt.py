"""What one attempt at a run is on this rank, beside the run itself: its number, and what may end it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.control import StopFlag
from pipeline.deadline import Deadline
from pipeline.startup import StartUp


@dataclass(frozen=True)
class Attempt:
    """``number`` on rank 0, which alone writes to the run folder; None on the others. ``nodes``: by name, where SLURM gave them."""

    number: int | None
    stop: StopFlag
    deadline: Deadline = field(default_factory=lambda: Deadline(None))
    startup: StartUp = field(default_factory=StartUp)
    nodes: tuple[str, ...] = ()
