"""What the loop lends to a module for one optimizer step: micro-batches, data-parallel backward, clipping, the step itself.

A module that trains with one optimizer never sees this; a GAN calls it from its own ``optimize``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.fabric import Fabric
from pipeline.train_module import Batch


class Accumulation:
    """Micro-batches of at most ``micro_batch`` samples; gradients travel between ranks with the last one of a step."""

    def __init__(self, micro_batch: int | None) -> None:
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
    """The ``train_module.Engine`` over Lightning Fabric. ``model`` is the module as Fabric wrapped it."""

    def __init__(self, fabric: Fabric, model: Any, micro_batch: int | None) -> None:
        super().__init__(micro_batch)
        self._fabric = fabric
        self._model = model
        model.mark_forward_method("training_step")

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        # Autocast explicitly: on one device Fabric passes a marked method through without it.
        with self._fabric.autocast(), self._fabric.no_backward_sync(self._model, enabled=not self._averaging):
            return self._model.training_step(batch, step)

    def backward(self, loss: Tensor) -> None:
        with self._fabric.no_backward_sync(self._model, enabled=not self._averaging):
            self._fabric.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
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
