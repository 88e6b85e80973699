"""When a job's time ends, and how long before that the last save must begin.

SLURM's early warning comes a fixed time before the end. How long a save takes depends on the model and on the file system's mood, so the
lead follows what this run has measured: where a checkpoint takes five minutes, a warning two minutes before the end is too late.
"""

from __future__ import annotations

import time

MARGIN = 10.0  # seconds for what is not measured: agreeing, requeueing, leaving


class Deadline:
    """Watches the end of a job's time.

    Args:
        end: seconds since the epoch; None: there is none.
        slowest_step, slowest_save: seconds, what earlier attempts at this run measured.
    """

    def __init__(self, end: float | None, slowest_step: float = 0.0, slowest_save: float = 0.0) -> None:
        self.end = end
        self.slowest_step = slowest_step
        self.slowest_save = slowest_save

    def stepped(self, seconds: float) -> None:
        """A step took so long, with the validation that belongs to it and without the save."""
        self.slowest_step = max(self.slowest_step, seconds)

    def saved(self, seconds: float) -> None:
        self.slowest_save = max(self.slowest_save, seconds)

    @property
    def lead(self) -> float:
        """Seconds before the end at which the ranks must be told: two slow steps and two slow saves, and a margin."""
        return MARGIN + 2 * self.slowest_step + 2 * self.slowest_save

    def near(self) -> bool:
        """Whether the next boundary between steps must be the last."""
        return self.end is not None and time.time() > self.end - self.lead

    def missing(self, trained_since: float) -> float:
        """Seconds that lack for one slow step between the first one and the moment for the last save; 0 where there is time enough."""
        if self.end is None:
            return 0.0
        return max(0.0, self.slowest_step - (self.end - self.lead - trained_since))
