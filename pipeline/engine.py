"""What the loop lends to a module for one optimizer step: micro-batches, data-parallel backward, clipping, the step itself.

A module that trains with one optimizer never sees this; a GAN calls it from its own ``optimize``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.collectives import world_size
from pipeline.fabric import Fabric
from pipeline.pace import pace_on
from pipeline.train_module import Batch, TrainModule


class Accumulation:
    """Micro-batches of at most ``micro_batch`` samples; gradients travel between ranks with the last one of a step.

    ``pace``: the clock of what this rank does alone.
    """

    def __init__(self, micro_batch: int | None, device: torch.device) -> None:
        self.pace = pace_on(device)
        self._micro_batch = micro_batch
        self._averaging = True  # do gradients of the next backward travel?

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        share = len(batch["position"])
        size = min(self._micro_batch or share, share)
        for start in range(0, share, size):
            piece = {name: value[start : start + size] for name, value in batch.items()} if size < share else batch
            self._averaging = start + size >= share
            yield piece, len(piece["position"]) / share
        self._averaging = True


class FabricEngine(Accumulation):
    """The ``train_module.Engine`` over Lightning Fabric's DDP. ``model`` is the module as Fabric wrapped it."""

    def __init__(self, fabric: Fabric, model: Any, micro_batch: int | None) -> None:
        super().__init__(micro_batch, fabric.device)
        self._fabric = fabric
        self._model = model
        model.mark_forward_method("training_step")

    def autocast(self) -> AbstractContextManager[Any]:
        return self._fabric.autocast()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self._fabric.autocast(), self._fabric.no_backward_sync(self._model, enabled=not self._averaging):
            return self._model.training_step(batch, step)

    def backward(self, loss: Tensor) -> None:
        if not self._averaging:
            with self._fabric.no_backward_sync(self._model):
                self._fabric.backward(loss)
            return
        with self.pace.meeting():
            self._fabric.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        return clip_and_step(optimizer, max_norm)


class PlainEngine(Accumulation):
    """The ``train_module.Engine`` without a wrapper: of one process, which has nobody to average with, and of a module with several
    optimizers, whose gradients are averaged when their optimizer steps.

    DDP would average in every backward, expects each to reach all parameters, and leaves ranks apart without a word where a network was
    called beside its wrapper. One sum for all of an optimizer's gradients costs a copy of them, and overlaps with nothing.
    """

    def __init__(self, fabric: Fabric, module: TrainModule, micro_batch: int | None) -> None:
        super().__init__(micro_batch, fabric.device)
        self._fabric, self._module = fabric, module
        if world_size() > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def autocast(self) -> AbstractContextManager[Any]:
        return self._fabric.autocast()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self._fabric.autocast():
            return self._module.training_step(batch, step)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # neither precision scales it

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        if world_size() > 1:
            with self.pace.meeting():
                average_gradients(parameters_of(optimizer))
        return clip_and_step(optimizer, max_norm)


class StillEngine(Accumulation):
    """The ``train_module.Engine`` of a step that is only watched or compiled by: of this process alone, and optimizers do not step.

    Args:
        autocast: makes the context of the run's precision; default: that of the weights.
    """

    def __init__(
        self,
        module: TrainModule,
        micro_batch: int | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__(micro_batch, next(module.parameters()).device)
        self._module, self.autocast = module, autocast

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self.autocast():
            return self._module.training_step(batch, step)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        return torch.zeros(())


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks; where a parameter has none, it counts as zero on this rank."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
    """Clip to ``max_norm`` (None: only measure), step, and return the norm before."""
    parameters = parameters_of(optimizer)
    if max_norm is None:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    else:
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
    optimizer.step()
    return norm


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``; positions stay on the CPU, where the keyed draws are seeded from them."""
    if device.type == "cpu":
        return batch
    return {name: value if name == "position" else value.to(device, non_blocking=True) for name, value in batch.items()}
