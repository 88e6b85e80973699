"""The contract between the training loop and a model: Lightning's own names, and no more of them than are used.

A system's ``models/<system>/train_module.py`` defines ``class TrainModule(pipeline.train_module.TrainModule)``. The
loop never knows the loss; the module never knows ranks, files or steps to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pipeline.config import OptimizerChoice, RunConfig, Schedule
from pipeline.rng import KeyedRandom

Batch = dict[str, Tensor]  # every tensor has the samples on dim 0; "position" is int64 (B,), see ``rng``


class Engine(Protocol):
    """What the loop lends to a module for one optimizer step; hides data parallelism, precision and accumulation."""

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Pieces of this rank's share and each one's fraction of it; gradients are averaged over ranks on the last."""

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The module's own ``training_step``, run through the wrapper that averages gradients and casts precision."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Within the block the module computes in the run's precision: for what a GAN calls beside ``training_step``."""

    def backward(self, loss: Tensor) -> None: ...

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """Clip the gradients of ``optimizer`` to ``max_norm`` (None: only measure), let it step, and return the norm before.

        With several optimizers it is here that the gradients of its parameters are averaged over ranks, so a module may call its
        networks in any order and as often as it likes between two steps.
        """


class TrainModule(nn.Module):
    """One system under training.

    Args:
        config: the run's frozen config.
        data: ``manifest["info"]`` of the shards the run reads: instrument names, latent statistics, and the like.
    """

    # What of ``validation_step`` is shown to people; all of it is journalled.
    headline: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.data = data
        self.random = KeyedRandom(config.seed)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        """``manifest["info"]`` as the config's recipe gives it, for looking at a model where no data is prepared."""
        raise NotImplementedError

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Scalars by name, of them ``loss`` (a mean over the batch) is minimised and all are logged."""
        raise NotImplementedError

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Scalars by name, each a mean over the batch; the loop makes the exact mean over the split. ``loss`` picks the best checkpoint."""
        raise NotImplementedError

    def example_batch(self, batch_size: int) -> Batch:
        """A random batch of the shapes the recipe gives, for shape tables and contract tests."""
        raise NotImplementedError

    def before_the_batch(self) -> list[str]:
        """What the data went through until it was a batch, a line with its shapes for each, for the shape table. Default: nothing."""
        return []

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """Write audio and pictures for a validation batch into ``folder``; rank 0 only. Default: nothing to show."""

    def compiled(self) -> Iterator[nn.Module]:
        """What ``trainer.compile`` compiles: modules whose ``forward`` takes and gives tensors and is the same graph whatever they hold.

        Default: nothing.
        """
        return iter(())

    def recomputed(self) -> Iterator[nn.Module]:
        """Parts whose activations are computed again in the backward where ``trainer.activation_checkpointing`` says so: those that hold
        most of a step's memory, none within another. Their ``forward`` changes no buffer, and draws from torch's generators or by key.
        Default: none.
        """
        return iter(())

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers by name. Their learning rates are the peak; the loop applies each one's ``schedule``."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return {"main": build_optimizer(trained, self.config.optimizer)}

    def averaged_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What ``trainer.ema`` averages, by name: all that is trained. A GAN leaves its discriminator out."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def load_pretrained(self) -> dict[str, str]:
        """Begin parts that are trained on with weights of the weights folder; the files' hashes by their names, for the run's history.

        Called once, before the first step and before ``start_from``. Default: nothing. Raises UserError where weights are missing or
        do not fit.
        """
        return {}

    def start_from(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Begin a new run with other runs' weights (their averages), under "init_from" and the names in ``ModelSection.runs``.

        Called once, before the first step: what must be there on every attempt has to be part of the module's state. Default:
        ``init_from`` is a run of the same architecture. Raises RuntimeError or KeyError where weights do not fit.
        """
        self.load_state_dict(weights["init_from"])

    def optimize(
        self, engine: Engine, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], step: int
    ) -> dict[str, Tensor]:
        """One optimizer step on this rank's share of the global batch; a GAN overrides this.

        Returns the scalars that are logged: ``loss``, and a ``grad_norm...`` for every optimizer; where one of those is not finite, the
        run is rolled back.
        """
        (optimizer,) = optimizers.values()
        optimizer.zero_grad(set_to_none=True)
        logged: dict[str, Tensor] = {}
        for piece, fraction in engine.micro_batches(batch):
            values = engine.training_step(piece, step)
            engine.backward(values["loss"] * fraction if fraction != 1.0 else values["loss"])
            for name, value in values.items():
                logged[name] = logged.get(name, 0.0) + value.detach() * fraction
        logged["grad_norm"] = engine.step(optimizer, self.config.trainer.grad_clip)
        return logged


def build_optimizer(parameters: Sequence[nn.Parameter], section: OptimizerChoice) -> torch.optim.Optimizer:
    """The optimizer the section names; fused, and so one kernel a step, where the device has it."""
    common: dict[str, Any] = {
        "lr": section.lr,
        "betas": section.betas,
        "eps": section.eps,
        "weight_decay": section.weight_decay,
    }
    match section.name:
        case "adam":
            return torch.optim.Adam(parameters, fused=True, **common)
        case "adamw":
            return torch.optim.AdamW(parameters, fused=True, **common)
        case "radam":
            return torch.optim.RAdam(parameters, **common)  # foreach on a GPU; on a CPU that is the slower way


def schedule_factor(schedule: Schedule, step: int) -> float:
    """Learning-rate factor for optimizer step ``step`` (1 is the first), a pure function of the step."""
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    assert schedule.decay_steps is not None
    done = min(1.0, (step - schedule.warmup_steps) / (schedule.decay_steps - schedule.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1.0 - done
    return schedule.final_ratio + (1 - schedule.final_ratio) * shape
