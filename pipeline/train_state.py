"""What is trained, and who holds it: module, optimizers and averaged weights, under one face for the loop.

``Replicated``: every rank holds all of it (one process, or data parallelism). ``pipeline.zero``: every rank holds a share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.checkpoint import Checkpoint, StoredCheckpoint
from pipeline.collectives import world_size
from pipeline.compiling import as_it_is, compile_parts
from pipeline.config import RunConfig
from pipeline.distributed import Agreement
from pipeline.ema import Ema
from pipeline.engine import FabricEngine, PlainEngine, StillEngine, parameters_of
from pipeline.fabric import Fabric
from pipeline.pace import Pace
from pipeline.recompute import compute_again
from pipeline.saving import Saver
from pipeline.train_module import Batch, Engine, TrainModule, schedule_factor

Optimizers = dict[str, torch.optim.Optimizer]


class PacedEngine(Engine, Protocol):
    """What the loop lends to a module, with the clock of what this rank does alone."""

    pace: Pace


class TrainState(Protocol):
    """What the loop needs of it. All ranks call the same methods in the same order."""

    def begin(self, stored: StoredCheckpoint | None) -> tuple[PacedEngine, Optimizers]:
        """Take over a checkpoint and make ready for training; what ``TrainModule.optimize`` is given."""

    def settle(self, engine: Engine, batch: Batch, step: int, counting: AbstractContextManager[None]) -> None:
        """Before an attempt's first step: let what is chosen or compiled at the first one be so by steps that move nothing.

        ``counting``: where training steps are compiled, a step that is not is made within it, if this state can.
        """

    def set_learning_rate(self, step: int) -> dict[str, float]:
        """Apply every optimizer's schedule; returns the rates as they are logged. A pure function of the step: nothing is carried."""

    def update_average(self, step: int) -> None: ...

    def evaluation(self) -> AbstractContextManager[None]:
        """Within the block the module bears the averaged weights where there are any, is in evaluation mode, and keeps no gradients."""

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The module's own, in the run's precision; within ``evaluation``, and on all ranks equally often."""

    def whole(self) -> AbstractContextManager[TrainModule | None]:
        """Within the block rank 0 has a module with all weights, as in ``evaluation``; the others get None."""

    def save(self, step: int, facts: dict[str, Any]) -> None:
        """Let the saver write a checkpoint where this rank writes any; ``facts`` go into its ``state.json``."""


class LearningRates:
    """Peak rates as the optimizers were made with, and each one's schedule on top of them."""

    def __init__(self, optimizers: Optimizers, config: RunConfig) -> None:
        self._all = []
        for number, (name, optimizer) in enumerate(optimizers.items()):
            section, _ = config.optimizer_of(name)
            peaks = [group["lr"] for group in optimizer.param_groups]
            shown = f"learning_rate_{name}" if number else "learning_rate"
            self._all.append((shown, optimizer, peaks, section))

    def set(self, step: int) -> dict[str, float]:
        rates = {}
        for shown, optimizer, peaks, section in self._all:
            factor = schedule_factor(section.schedule, step)
            rates[shown] = factor * section.lr
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):  # loading a state makes new groups
                group["lr"] = peak * factor
        return rates


class Still:
    """An optimizer that takes gradients and moves nothing."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

    def step(self) -> None:
        """Stand still."""


class Replicated:
    """A ``TrainState`` of which every rank holds all; rank 0 writes it."""

    def __init__(self, fabric: Fabric, module: TrainModule, config: RunConfig, rank: int, saver: Saver) -> None:
        self._fabric, self._module, self._config, self._rank, self._saver = fabric, module, config, rank, saver
        module.to(fabric.device)
        if config.trainer.compile:
            compile_parts(module)
        self._optimizers = module.configure_optimizers()
        for optimizer in self._optimizers.values():
            optimizer.register_step_pre_hook(saver.hold_still)
        self._rates = LearningRates(self._optimizers, config)
        self._ema = Ema(dict(module.averaged_parameters()), config.trainer.ema) if config.trainer.ema else None

    def begin(self, stored: StoredCheckpoint | None) -> tuple[PacedEngine, Optimizers]:
        if stored:
            self._load(stored)
        size = self._config.trainer.micro_batch
        if len(self._optimizers) > 1 or world_size() == 1:
            return PlainEngine(self._fabric, self._module, size), self._optimizers
        return FabricEngine(self._fabric, self._fabric.setup_module(self._module), size), self._optimizers

    def _load(self, stored: StoredCheckpoint) -> None:
        self._module.load_state_dict(stored.parts["model"])
        for name, optimizer in self._optimizers.items():
            asked = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(stored.parts[f"optimizer.{name}"])
            lay_as_weights(optimizer)
            for group, options in zip(optimizer.param_groups, asked, strict=True):
                group.update(options)  # as the config has them now: a resume may change them
        if self._ema:  # averages that were not kept so far begin with the weights
            weights = {name: parameter.detach() for name, parameter in self._module.averaged_parameters()}
            self._ema.load_state_dict(stored.parts.get("ema") or weights)

    def settle(self, engine: Engine, batch: Batch, step: int, counting: AbstractContextManager[None]) -> None:
        """Compile, where the run is compiled; ranks do it at the same time and meet in no gradient, for none is to wait for another.

        DDP orders its buckets anew after an attempt's first backward. From three ranks on, the place of a gradient in a bucket
        decides in which order it is summed: without a step before, a resumed run's first one would differ in its last bits.
        """
        if self._config.trainer.compile:
            alone = StillEngine(self._module, self._config.trainer.micro_batch, self._fabric.autocast)
            with as_it_is(True), counting:
                self.rehearse(alone, batch, step)
            self.rehearse(alone, batch, step)
        if world_size() >= 3 and len(self._optimizers) == 1:
            self.rehearse(engine, batch, step)

    def rehearse(self, engine: Engine, batch: Batch, step: int) -> None:
        """A step that leaves everything as it was, what a module moves by itself included: buffers, a teacher's weights."""
        moved = {id(p) for optimizer in self._optimizers.values() for p in parameters_of(optimizer)}
        named = itertools.chain(self._module.named_parameters(), self._module.named_buffers())
        before = [(tensor, tensor.detach().clone()) for _, tensor in named if id(tensor) not in moved]
        still: Any = {name: Still(optimizer) for name, optimizer in self._optimizers.items()}
        self._module.optimize(engine, batch, still, step)
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)

    def set_learning_rate(self, step: int) -> dict[str, float]:
        return self._rates.set(step)

    def update_average(self, step: int) -> None:
        if self._ema:
            self._saver.hold_still()  # an optimizer may have left this step out
            self._ema.update(step)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        self._module.eval()
        with torch.no_grad(), as_it_is(self._config.trainer.compile):
            if self._ema:
                with self._ema.applied():
                    yield
            else:
                yield
        self._module.train()

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self._fabric.autocast():
            return self._module.validation_step(batch, step)

    @contextmanager
    def whole(self) -> Iterator[TrainModule | None]:
        if self._rank:
            yield None
        else:
            with self.evaluation():
                yield self._module

    def save(self, step: int, facts: dict[str, Any]) -> None:
        """What only an optimizer moves is copied beside the next step; the rest, which a forward may change (buffers), at once."""
        if self._rank:
            return
        model = self._module.state_dict()
        moved = self._names_of_what_optimizers_move()
        parts: dict[str, Any] = {"model": {name: t if name in moved else t.clone() for name, t in model.items()}}
        parts |= {f"optimizer.{name}": optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        if self._ema:
            parts["ema"] = self._ema.state_dict()
        self._saver.beside(Checkpoint(step, parts, facts))

    def _names_of_what_optimizers_move(self) -> set[str]:
        moved = {id(p) for optimizer in self._optimizers.values() for p in parameters_of(optimizer)}
        return {name for name, p in self._module.named_parameters(remove_duplicate=False) if id(p) in moved}


def lay_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Let moments lie in memory as their weights do (channels last, it may be), as they did before they were in a file. Torch's fused
    optimizers walk through both side by side, and would step each weight by another's moments without a word.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_train_state(
    fabric: Fabric, module: TrainModule, config: RunConfig, ranks: Agreement, saver: Saver
) -> TrainState:
    """As ``trainer.strategy`` says; one process has nothing to share out and trains plainly."""
    state: TrainState
    if config.trainer.strategy == "deepspeed" and ranks.world.size > 1:
        from pipeline.zero import Sharded  # DeepSpeed takes seconds to import

        state = Sharded(fabric, module, config, ranks, saver)
    else:
        state = Replicated(fabric, module, config, ranks.world.rank, saver)
    if config.trainer.activation_checkpointing:  # of whatever forward a part has by now
        compute_again(module.recomputed())
    return state
