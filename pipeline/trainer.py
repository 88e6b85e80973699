"""The only training loop. Read ``fit`` from top to bottom: nothing happens in a step that does not stand there.

What a step depends on is (config, weights, position in the data, step number) and nothing else, so a run that was killed
anywhere goes on from its last checkpoint with the same data, the same noise, and ends with the same weights.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from pipeline import checkpoint as checkpoints
from pipeline import health
from pipeline.arithmetic import FirstStep
from pipeline.attempt import Attempt
from pipeline.config import RunConfig
from pipeline.control import Stop
from pipeline.distributed import Agreement
from pipeline.engine import to_device
from pipeline.errors import RunFailed, Unlucky
from pipeline.fabric import Fabric
from pipeline.heartbeat import Heartbeat
from pipeline.loader import Evaluation, Loader
from pipeline.manifest import Manifest
from pipeline.profiler import StepProfiler
from pipeline.pulse import Pulse
from pipeline.reporter import Reporter
from pipeline.rng import seed_step
from pipeline.runs import RunFolder
from pipeline.saving import Saver
from pipeline.train_module import Batch, Engine, TrainModule
from pipeline.train_state import make_train_state
from pipeline.watchdog import Watchdog
from pipeline.world import World

UNSEEN = 10_000  # losses that are kept from one look to the next, to say on which rank one went wrong first


@dataclass
class Progress:
    """Where a run stands: what a checkpoint's ``state.json`` holds beside the weights."""

    step: int = 0
    data: dict[str, Any] = field(default_factory=dict)  # the loader's state after the last trained step
    validation_loss: float | None = None
    losses: list[float] = field(default_factory=list)  # the last logged ones, where a leap would be looked for


class Trainer:
    """One attempt at a run on this rank.

    Ranks whose ``attempt`` has no number write nothing.
    """

    def __init__(
        self, run: RunFolder, config: RunConfig, module: TrainModule, manifest: Manifest, fabric: Fabric, world: World,
        attempt: Attempt,
    ) -> None:  # fmt: skip
        self.run, self.config, self.manifest, self.world, self.attempt = run, config, manifest, world, attempt
        self.fabric = fabric
        self.module = module
        self.at = Progress()
        self.agreement = Agreement(world)
        self.saver = Saver(run.checkpoints, config.trainer.keep if attempt.number is not None else None)
        self.state = make_train_state(fabric, module, config, self.agreement, self.saver)
        self.watchdog = Watchdog(run, world.rank, config.trainer.hang_seconds, compiling=config.trainer.compile)
        self.pulse = Pulse(run, world, fabric.device)
        self.reporter = Reporter(run, attempt, world, self.pulse) if attempt.number is not None else None
        self.heartbeat = self.reporter.heartbeat if self.reporter else Heartbeat(self.pulse.write)
        self.first_step = FirstStep(fabric.device, config.trainer.precision)
        self._unseen: deque[Tensor] = deque(maxlen=UNSEEN)
        self._sound = 0  # the last step that was looked at and found sound

    def fit(self) -> Stop:
        """Train to ``max_steps`` or to an agreed stop; returns why it ended (``Stop.NO``: complete).

        Raises RolledBack where loss or gradient are not finite any more or the loss leaps (``trainer.rollback``): another attempt is to
        go on from the last good checkpoint. Raises RunFailed where that has been tried often enough.
        """
        stored = self._restore()
        self.attempt.startup.mark("restore")
        engine, optimizers = self.state.begin(stored)
        if stored:
            stored.parts.close()
        section = self.config.trainer
        start, loader = self.at.step, self._loader()
        self._sound = start
        batches = iter(loader)
        if self.reporter:
            self.reporter.begin(self.at.step, section.max_steps, self.manifest.identity, self.config.data.batch_size)
        agreed = Stop.NO
        profiler = StepProfiler(self.run, section.profile, self.world, start, self.fabric.device)
        self.module.train()
        with self.saver, loader, self.watchdog.watching(start), self.heartbeat.beating(), profiler.ready():
            while self.at.step < section.max_steps and agreed is Stop.NO:
                step, first = self.at.step + 1, self.at.step == start
                profiler.begin(step)
                self.agreement.begin(2 * self.attempt.stop.value + self._wants_look())  # travels while it computes
                waiting = time.perf_counter()
                with profiler.part("data"):
                    batch = to_device(next(batches), self.fabric.device)
                waited = time.perf_counter() - waiting
                if first:
                    self._settle(engine, batch, step)
                engine.pace.begin(waited)
                seed_step(self.config.seed, step, self.world.rank)
                rates = self.state.set_learning_rate(step)
                try:
                    with profiler.part("optimize"), self._counting(first and not section.compile):
                        logged = self.module.optimize(engine, batch, optimizers, step)
                except FloatingPointError as error:
                    self._roll_back(step, str(error), loader, start)
                self.state.update_average(step)
                self.at.step = step
                self._unseen.append(logged["loss"].detach())
                self.watchdog.stepped(step)
                self.pulse.stepped(step, None if first else engine.pace.own())
                self._tell_saved(wait=False)
                if self.reporter:
                    self.reporter.step_done(step, waited, self.first_step.found)
                agreed = self._do_what_is_due(step, logged, rates, loader, start)
        return self._end(agreed)

    def _do_what_is_due(
        self, step: int, logged: dict[str, Tensor], rates: dict[str, float], loader: Loader, start: int
    ) -> Stop:
        """After a step: look at it, validate, sample, save, each in its turn; returns what all ranks agreed on."""
        section = self.config.trainer
        asked, looking = divmod(self.agreement.result(), 2)
        agreed, last = Stop(asked), step == section.max_steps
        saving = agreed not in (Stop.NO, Stop.SUPERSEDED) or step % section.save_every == 0 or last
        if saving or looking or step % section.log_every == 0:
            self._look(step, logged, rates, loader, start)
        if step % section.validate_every == 0 or last:
            self._validate(step)
        if section.sample_every and (step % section.sample_every == 0 or last):
            self._sample(step)
        if saving:
            self.at.data = loader.state_after(step - start)
            self._save(last=last or agreed is not Stop.NO)
        return agreed

    # -- where the run stands -----------------------------------------------------------------------------------

    def _restore(self) -> checkpoints.StoredCheckpoint | None:
        """The newest good checkpoint, if any; rank 0 decides which one that is and the others follow."""
        found: checkpoints.StoredCheckpoint | None = None
        if self.reporter:
            self._warn(checkpoints.sweep(self.run.checkpoints))
            found, rejected = checkpoints.load_newest(self.run.checkpoints, set_aside=True)
            for sentence in rejected:
                self.reporter.event("checkpoint_rejected", message=sentence)
            self._warn(rejected)
        step = self.agreement.maximum(found.step if found else 0)
        if step == 0:
            return None
        stored = found or self._follow(step)
        facts = stored.state
        self.at = Progress(stored.step, facts["data"], facts["validation_loss"], facts.get("losses", []))
        return stored

    def _follow(self, step: int) -> checkpoints.StoredCheckpoint:
        """The checkpoint that rank 0 has found good; RunFailed where this rank does not see it so."""
        try:
            return checkpoints.load(self.run.checkpoints / checkpoints.folder_name(step))
        except checkpoints.BadCheckpoint as error:
            raise Unlucky(
                f"rank {self.world.rank} cannot read what rank 0 can: {error}; look at its node's file system"
            ) from error

    def _save(self, *, last: bool) -> None:
        """Whoever holds something hands it to the saver, where rank 0 holds the lease. With ``last`` nothing follows."""
        superseded = self.reporter is not None and not self.reporter.may_write()
        if self.agreement.maximum(int(superseded)):
            return
        with self._while_rank_0_works():
            self._tell_saved(wait=True)
            self.state.save(self.at.step, asdict(self.at))
            self._tell_saved(wait=last)
        if self.reporter:
            self.reporter.waited_for_save()

    def _tell_saved(self, *, wait: bool) -> None:
        """Write down what came of the last save, as soon as it is known. A failed one leaves the older ones."""
        saved = self.saver.outcome(wait=wait)
        if saved is None or self.reporter is None:
            return
        self._warn(saved.warnings)
        if saved.failure:
            why = saved.failure.strerror or saved.failure
            message = f"checkpoint at step {saved.step} could not be written ({why}); the older ones are intact"
            self.reporter.event("save_failed", step=saved.step, message=message)
            self.reporter.say(f"warning: {message}")
        self.reporter.saved(self.at.step, saved.waited, saved.seconds)

    @staticmethod
    def _warn(sentences: Iterable[str]) -> None:
        for sentence in sentences:
            print(f"warning: {sentence}", file=sys.stderr, flush=True)

    @contextmanager
    def _while_rank_0_works(self) -> Iterator[None]:
        """All ranks leave the block together. The others wait in an agreement, whose half hour outlasts the watchdogs' 25 minutes:
        a gradient's collective would give up after five.
        """
        with self.watchdog.patient():
            yield
            self.agreement.maximum(0)

    def _end(self, agreed: Stop) -> Stop:
        """Write down how the attempt ended; ``Stop.NO``: the run is complete."""
        complete = self.at.step >= self.config.trainer.max_steps
        if self.reporter and complete and agreed is not Stop.SUPERSEDED:
            self._check_saved()
        if self.reporter:
            self.reporter.end(self.at.step, agreed, complete=complete)
        return Stop.NO if complete else agreed

    def _check_saved(self) -> None:
        """A run whose last weights are not on disk is not complete."""
        assert self.reporter is not None
        if self.at.step not in self.run.steps():
            message = f"the last checkpoint could not be written; make room in {self.run.path}, or mend its disk, and launch again"
            self.reporter.failed(self.at.step, message)
            raise RunFailed(f"{self.run.name}: {message}.")

    # -- parts of a step ----------------------------------------------------------------------------------------

    def _loader(self) -> Loader:
        loader = Loader(
            self.manifest,
            "train",
            batch_size=self.config.data.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            seed=self.config.seed,
            workers=self.config.data.workers,
            position=self.at.data.get("position", 0),
            partner=self.config.data.partner,
            skip=[*self.at.data.get("skip", ()), *self._given_up()],
            pin_memory=self.fabric.device.type == "cuda",
        )
        if self.at.data:
            loader.check(self.at.data)
        return loader

    def _evaluation(self, rank: int) -> Evaluation:
        limit, size = self.config.trainer.validate_batches, self.config.data.batch_size
        return Evaluation(
            self.manifest,
            "valid",
            batch_size=size,
            rank=rank,
            world_size=self.world.size,
            limit=limit,
            partner=self.config.data.partner,
            pin_memory=self.fabric.device.type == "cuda",
        )

    def _look(self, step: int, logged: dict[str, Tensor], rates: dict[str, float], loader: Loader, start: int) -> None:
        """Means over ranks, journalled where they are due. Every rank sees the same values, so where they are bad all go back."""
        names = sorted(logged)
        sums = self.agreement.total(torch.stack([logged[n].detach().reshape(()) for n in names]).double().cpu())
        means = sums / self.world.size
        values = {f"train/{name}": value for name, value in zip(names, means.tolist(), strict=True)}
        section = self.config.trainer
        due = step % section.log_every == 0
        if due or step == section.max_steps:
            self._tell_faults(step, loader.faults())
            if self.reporter:
                self.reporter.log(step, values | {f"train/{name}": rate for name, rate in rates.items()})
        if self.reporter:
            self.reporter.looked()
        if wrong := health.trouble(values, self.at.losses, section.rollback):
            self._roll_back(step, wrong, loader, start, self._began(step))
        self._unseen.clear()
        self._sound = step
        if due and section.rollback.spike is not None:
            self.at.losses = [*self.at.losses, values["train/loss"]][-health.REMEMBERED :]

    def _settle(self, engine: Engine, batch: Batch, step: int) -> None:
        self.state.settle(engine, batch, step, self._counting(self.config.trainer.compile))
        if self.config.trainer.compile:
            self.attempt.startup.mark("compile")

    def _counting(self, wanted: bool) -> AbstractContextManager[None]:
        """Rank 0 counts what a step computes, the attempt's first or one before it; the others compute as much. Compiled steps cannot be
        counted: torch gives up compiling what is watched at its first call."""
        return self.first_step.counting() if wanted and self.reporter else nullcontext()

    def _wants_look(self) -> bool:
        return self.reporter is not None and self.reporter.wants_look

    def _began(self, step: int) -> tuple[int, int] | None:
        """(rank, step) at which losses ceased to be finite since the last look, where that tells a rank apart."""
        mine = torch.stack([loss.detach().double().reshape(()) for loss in self._unseen]).cpu()
        first = torch.tensor([health.first_bad(mine.tolist())], dtype=torch.float64)
        found = health.guilty(self.agreement.gather(first).flatten().tolist())
        return (found[0], step - len(self._unseen) + 1 + found[1]) if found else None

    def _roll_back(
        self, step: int, what: str, loader: Loader, start: int, began: tuple[int, int] | None = None
    ) -> NoReturn:
        """End this attempt at a step that went wrong; the positions of the steps since the last sound one are given up.

        ``began``: rank and step of the first loss that was not finite, where that can be told.
        """
        rank = began[0] if began else None
        if began:
            what += f" on rank {rank}" + (f" (first at step {began[1]})" if began[1] < step else "")
        before = len(self._given_up())
        if before >= self.config.trainer.rollback.times:
            after = f" again, after {before} rollback(s)" if before else ""
            message = f"{what} at step {step}{after}; lower optimizer.lr or set trainer.grad_clip, then resume"
            if self.reporter:
                self.reporter.failed(step, message, rank)
            raise RunFailed(f"{self.run.name}: {message}.")
        if self.reporter:
            begin, end = (loader.state_after(s - start)["position"] for s in (self._sound, step))
            self.reporter.rolled_back(step, what, (begin, end), rank)
        raise health.RolledBack(what)

    def _given_up(self) -> list[health.Window]:
        """Rank 0 reads the run's history, the others follow."""
        windows = health.given_up(self.run) if self.reporter else []
        count = self.agreement.maximum(len(windows))
        ends = torch.tensor(windows or [(0, 0)] * count, dtype=torch.float64)  # exact to 2^53
        return [(int(begin), int(end)) for begin, end in self.agreement.total(ends)] if count else []

    def _tell_faults(self, step: int, faults: list[str]) -> None:
        """Each rank names the damaged samples that it met, in the run's history and to whoever looks."""
        for fault in faults:
            self.run.note("data_fault", step=step, rank=self.world.rank, message=fault)
            print(f"warning: {fault}", file=sys.stderr, flush=True)

    def _validate(self, step: int) -> None:
        """Exact means over the validation split, each rank taking its part of it, with the averaged weights where there are any."""
        if self.manifest.samples("valid") == 0:
            return
        totals: dict[str, Tensor] = {}  # where the values are: the host waits for them once
        count = 0
        with self.state.evaluation():
            for batch, size in self._validation_share(step):
                self.watchdog.alive()
                values = self.state.validation_step(to_device(batch, self.fabric.device), step)
                for name, value in values.items():
                    totals[name] = totals.get(name, 0.0) + value.double() * size
                count += size
        means = self._mean_over_ranks(totals, count)
        self.at.validation_loss = means["loss"]
        if self.reporter:
            self.reporter.log_validation(step, means, self.module.headline)

    def _validation_share(self, step: int) -> Iterator[tuple[Batch, int]]:
        """This rank's batches and their weights, equally many on all ranks: forward may be a collective.

        A rank without samples in the last batch takes rank 0's first, with no weight.
        """
        share = self._evaluation(self.world.rank)
        left = len(share)
        for batch in share:
            left -= 1
            yield batch, len(batch["position"])
        self._tell_faults(step, share.faults())
        for _ in range(left):
            yield next(iter(self._evaluation(0))), 0

    def _mean_over_ranks(self, totals: dict[str, Tensor], count: int) -> dict[str, float]:
        names = sorted(totals)
        sums = self.agreement.total(
            torch.cat([torch.stack([totals[n] for n in names]).cpu(), torch.tensor([count], dtype=torch.float64)])
        )
        return {name: float(value / sums[-1]) for name, value in zip(names, sums, strict=False)}

    def _sample(self, step: int) -> None:
        """Audio and pictures of the first validation batch, made by rank 0. A disk that has no room for them must not end the training."""
        if self.manifest.samples("valid") == 0:
            return
        with self._while_rank_0_works(), self.state.whole() as module:
            if module is None:
                return
            folder = self.run.samples / checkpoints.folder_name(step)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                module.sample(to_device(next(iter(self._evaluation(0))), self.fabric.device), folder, step)
            except OSError as error:
                self._warn([f"samples of step {step} cannot be written ({error.strerror}); training goes on"])
