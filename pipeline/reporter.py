"""What one attempt tells the world: journal, heartbeat, history and the line on the terminal. Rank 0 only.

``step_done`` runs at every step and must cost next to nothing; everything slow is behind a clock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.arithmetic import Arithmetic
from pipeline.attempt import Attempt
from pipeline.control import Stop
from pipeline.errors import RunFailed
from pipeline.heartbeat import Heartbeat
from pipeline.journal import Journal
from pipeline.lookout import Lookout
from pipeline.progress import StepProgress
from pipeline.pulse import Pulse, Pulses
from pipeline.runs import RunFolder
from pipeline.world import World

LEASE_SECONDS = 2.0  # between two looks at who may write
LOOK_SECONDS = 30.0  # at most between two looks at the loss, however seldom it is logged


class Reporter:
    """``wants_look``: whether the loss has not been looked at for long."""

    def __init__(self, run: RunFolder, attempt: Attempt, world: World, pulse: Pulse) -> None:
        assert attempt.number is not None
        self._run, self._attempt, self._world = run, attempt.number, world
        self._stop, self._deadline, self._startup, self._nodes = (
            attempt.stop, attempt.deadline, attempt.startup, attempt.nodes,
        )  # fmt: skip
        self._last_step = 0.0
        self._facts = ""
        self._loss: float | None = None
        self._waited = 0.0
        self._steps = 0
        self._since = time.perf_counter()
        self._next_lease_look = 0.0
        self._next_clock = 0.0
        self._looked = time.perf_counter()
        self.wants_look = False
        self._arithmetic: Arithmetic | None = None
        self._step, self._state = 0, "training"
        self._trained_since: float | None = None
        self._pulses = Pulses(run, world, pulse)
        self._lookout = Lookout(run, attempt.number, self._pulses, attempt.deadline)
        self.heartbeat = Heartbeat(lambda: self._run.beat(**self._facts_of_now()))

    def begin(self, step: int, total: int, data_identity: str, batch_size: int) -> None:
        """Open the journal and say in the history that this attempt starts after ``step``; RunFailed where that cannot be written."""
        self._batch_size, self._total, self._start = batch_size, total, step
        facts = {
            "after_step": step,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "world_size": self._world.size,
            "nodes": self._world.nodes,
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "node_names": list(self._nodes),
            "data": data_identity,
        }
        self._decide("attempt", "a training that cannot be written down is not begun", **facts)
        self._journal = Journal(self._run.journal_file(self._attempt), self._attempt, step)
        self._progress = StepProgress(self._run.path.parent.name, total, step)
        if step:
            self.say(f"resuming after step {step} (attempt {self._attempt})")
        self._pulses.begin()
        self._startup.mark("ready")
        self._since = self._last_step = time.perf_counter()
        self._step = step
        self.heartbeat.beat()

    def step_done(self, step: int, waited: float, arithmetic: Arithmetic | None) -> None:
        """``waited``: seconds for data. ``arithmetic``: what a step computes, as far as that is known."""
        self._steps += 1
        self._waited += waited
        now = time.perf_counter()
        if step == self._start + 1:  # it pays for what is made at the first use: not what a step takes
            self._startup.mark("first_step")
            self._trained_since, self._arithmetic = time.time(), arithmetic
            self.event("first_step", step=step, **self._startup.parts, **(arithmetic.facts() if arithmetic else {}))
        else:
            self._deadline.stepped(now - self._last_step)
        self._last_step, self._step = now, step
        if now < self._next_clock:
            return
        self._next_clock = now + 0.1
        self.wants_look = now - self._looked > LOOK_SECONDS
        if self._progress.due():
            self._progress.update(step, self._facts)
        if now >= self._next_lease_look:
            self._next_lease_look = now + LEASE_SECONDS
            if not self._run.holds_lease(self._attempt):
                self._stop.raise_to(Stop.SUPERSEDED)
            elif self._deadline.near():
                self._stop.raise_to(Stop.WARNED)

    def looked(self) -> None:
        """The loss has been looked at just now."""
        self._looked, self.wants_look = time.perf_counter(), False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Journal one step's metrics, with the rate and the share of time spent waiting for data since the last, MFU, memory, GPUs."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        own = {
            "time/steps_per_s": self._steps / elapsed,
            "time/samples_per_s": self._steps * self._batch_size / elapsed,
            "time/data_wait": self._waited / elapsed,
        }
        if self._arithmetic and self._steps:
            own |= self._arithmetic.rates(self._steps / elapsed)
        self._journal.log(step, {**metrics, **own, **self._pulses.memory(), **_of_gpus(self._lookout.gpus)})
        if self._journal.trouble:
            self.say(f"warning: {self._journal.trouble}")
            self._journal.trouble = None
        self._steps, self._waited, self._since = 0, 0.0, time.perf_counter()
        self._loss = metrics.get("train/loss")
        self._facts = "" if self._loss is None else f"loss {self._loss:.4g}"

    def log_validation(self, step: int, means: Mapping[str, float], headline: Sequence[str]) -> None:
        """Journal all means over the validation split; show those that ``headline`` names."""
        self._journal.log(step, {f"valid/{name}": value for name, value in means.items()})
        shown = "  ".join(f"{name.replace('_', ' ')} {means[name]:.4g}" for name in headline)
        self.say(f"step {step}, validation: {shown}")
        self._restart_clock()

    def event(self, name: str, **facts: Any) -> None:
        """Write down what has happened; a disk that takes no more must not end the training."""
        self._run.note(name, attempt=self._attempt, **facts)

    def _decide(self, name: str, otherwise: str, **facts: Any) -> None:
        """Write down what later attempts go by; RunFailed where that is impossible, for ``otherwise`` they would go wrong."""
        try:
            self._run.record(name, attempt=self._attempt, **facts)
        except OSError as error:
            message = f"{self._run.history_file} cannot be written ({error.strerror}): {otherwise}"
            raise RunFailed(f"{self._run.name}: {message}; make room or mend that, and launch again.") from error

    def may_write(self) -> bool:
        return self._run.holds_lease(self._attempt)

    def say(self, text: str) -> None:
        self._progress.say(text)

    def saved(self, step: int, waited: float, seconds: float) -> None:
        """A checkpoint that took ``seconds`` is done with at ``step``; the loop waited for it so long."""
        self._journal.log(step, {"time/save_s": waited, "time/save_write_s": seconds})
        self._deadline.saved(seconds)

    def end(self, step: int, stop: Stop, *, complete: bool) -> None:
        """Close everything and write how the attempt ended into the history; a superseded one only says that it is."""
        self._progress.update(step, self._facts)
        self._progress.close()
        if stop is Stop.SUPERSEDED:
            self.event("superseded", step=step, job_id=os.environ.get("SLURM_JOB_ID"))
        else:
            reason = "complete" if complete else stop.name.lower()
            self._last_beat(step, reason)
            took = {"slowest_step": self._deadline.slowest_step, "slowest_save": self._deadline.slowest_save}
            slowest = {f"{name}_s": round(seconds, 3) for name, seconds in took.items()}
            self.event("end", reason=reason, step=step, gained=step - self._start, **slowest)
        self._journal.close()

    def failed(self, step: int, message: str, rank: int | None = None) -> None:
        """``rank``: the one that it began on, where that is known."""
        self._progress.close()
        self._last_beat(step, "failed")
        where = {} if rank is None else {"rank": rank}
        self.event("end", reason="failed", step=step, gained=step - self._start, message=message, **where)
        self._journal.close()

    def rolled_back(self, step: int, why: str, window: tuple[int, int], rank: int | None) -> None:
        """End this attempt; ``window`` of positions is left out from now on, which the history decides: RunFailed without it.

        ``rank``: the one that it began on, where that is known.
        """
        samples = f"samples {window[0]}..{window[1] - 1} of its order"
        self.say(f"warning: {why} at step {step}; back to the last good checkpoint, and past the {samples}")
        self._progress.close()
        self._last_beat(step, "rolled_back")
        facts = {"step": step, "message": why, "skip": list(window), **({} if rank is None else {"rank": rank})}
        self._decide("rolled_back", "the same data would do the same harm", **facts)
        self._journal.close()

    def waited_for_save(self) -> None:
        """What the loop waited belongs neither to the step rate nor to the slowest step."""
        self._last_step = time.perf_counter()
        self._restart_clock()

    def _restart_clock(self) -> None:
        """Validation and saving are not part of the step rate."""
        self._steps, self._waited, self._since = 0, 0.0, time.perf_counter()

    def _last_beat(self, step: int, state: str) -> None:
        self._step, self._state = step, state
        self.heartbeat.beat()

    def _facts_of_now(self) -> dict[str, Any]:
        seen = self._lookout.look(self._trained_since)
        return {
            "attempt": self._attempt,
            "state": self._state,
            "step": self._step,
            "total": self._total,
            "loss": _finite(self._loss),
            "rate": self._progress.rate,
            "world_size": self._world.size,
            "host": socket.gethostname(),
            "job_id": os.environ.get("SLURM_JOB_ID"),
            **seen,
        }


def _finite(value: float | None) -> float | str | None:
    return value if value is None or value - value == 0 else str(value)


def _of_gpus(seen: dict[str, Any] | None) -> dict[str, float]:
    """What is journalled of all GPUs: use as a share, memory of the fullest in GiB, power in W, energy of this attempt in kWh."""
    if seen is None:
        return {}
    named = {"gpu/use": seen["use"], "gpu/power_w": seen["power_w"], "gpu/energy_kwh": seen["energy_kwh"]}
    if seen["memory"] is not None:
        named["gpu/memory_gib"] = seen["memory"] / 2**30
    return {name: value for name, value in named.items() if value is not None}
