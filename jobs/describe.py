"""What a config builds: the shapes at every stage, a table of parameters, memory, arithmetic. ``launch.py NAME --describe``.

One training step, of all optimizers, is made on the CPU with a few random samples of the recipe's shapes, and watched: nothing here is
computed from formulas. Of a large network's step only the shapes are made (``jobs/shapes.py``), so that it takes seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jobs.configs import parse_tree
from jobs.interval import recommendation
from jobs.shapes import ShapesOnly
from models import registry
from pipeline import rng
from pipeline.arithmetic import Count
from pipeline.config import RunConfig
from pipeline.engine import StillEngine
from pipeline.errors import UserError, run_command
from pipeline.manifest import read_manifest
from pipeline.train_module import Batch, TrainModule

BATCHES = (2, 4, 8, 16, 32, 64)  # tried in turn: a loss that couples samples may need a whole group
DEPTH = 3  # of the modules in the tables
LARGE = 90e6  # bytes of weights, from which on a step is not computed, and too much for preflight


@dataclass(frozen=True)
class Stage:
    """One module as it was called: shapes in and out, with its parameters."""

    name: str
    kind: str
    parameters: int
    trainable: int
    inputs: str
    outputs: str


@dataclass(frozen=True)
class Description:
    """``before``: see ``TrainModule.before_the_batch``. ``batch``: samples of the watched step. ``saved``: bytes that the backward kept;
    ``spared``: that it would have kept with activation checkpointing. ``flops`` of both passes,
    in ``operations`` (``pipeline.arithmetic.Count``)."""

    before: list[str]
    stages: tuple[Stage, ...]
    parameters: int
    trainable: int
    batch: int
    shapes: dict[str, str]
    saved: int
    spared: int
    flops: int
    operations: int
    sizes: dict[str, int]


def describe(config: RunConfig, folder: Path | None) -> Description:
    """Build ``config``'s module for the data in ``folder`` (None: for data as the recipe gives it) and watch one step."""
    torch.manual_seed(rng.key(config.seed, "initial weights"))
    module = build(config, folder)
    module.train()
    batch, size = example(module, BATCHES)
    seen = _Watch(module)
    with shapes_only_if_large(module, batch), seen, Count() as count:
        module.optimize(StillEngine(module), batch, module.configure_optimizers(), 1)
    parameters = list(module.parameters())
    held = seen.spared if config.trainer.activation_checkpointing else seen.saved
    return Description(
        module.before_the_batch(),
        tuple(seen.stages()),
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        size,
        {name: _shape(value) for name, value in batch.items()},
        seen.saved,
        seen.spared,
        count.flops,
        count.operations,
        fixed_sizes(module, config) | {"activations_per_sample": -(-held // size)},
    )


def preflight_sizes(config: RunConfig, folder: Path | None) -> dict[str, int]:
    """Bytes, as ``Description.sizes``; a large model is only counted: a login node is no place for a step of it."""
    with torch.device("meta"):
        sizes = fixed_sizes(build(config, folder), config)
    return sizes if sizes["weights"] > LARGE else describe(config, folder).sizes


def fixed_sizes(module: TrainModule, config: RunConfig) -> dict[str, int]:
    """Bytes that do not depend on the batch. ``saved``: what of the weights a checkpoint holds; frozen ones may be left out of it."""
    trainable = 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {
        "weights": 4 * sum(p.numel() for p in module.parameters()),
        "saved": sum(value.nbytes for value in module.state_dict().values()),
        "gradients": trainable,
        "optimizer": 2 * trainable,  # Adam, AdamW and RAdam: two moments
        "ema": trainable if config.trainer.ema else 0,
        "activations_per_sample": 0,
    }


def build(config: RunConfig, folder: Path | None) -> TrainModule:
    """The module of ``config`` for the data in ``folder``; None: for data as the recipe gives it."""
    kind = registry.part(config.model, "train_module").TrainModule
    return kind(config, read_manifest(folder).info if folder else kind.typical_data(config))


def example(module: TrainModule, sizes: Sequence[int]) -> tuple[Batch, int]:
    """An example batch of the first of ``sizes`` that the module takes, and that size; UserError where it takes none."""
    problem: UserError | None = None
    for size in sizes:
        try:
            batch = module.example_batch(size)
            with shapes_only_if_large(module, batch), torch.no_grad():
                module.training_step(batch, 1)
            return batch, size
        except UserError as error:
            problem = error
    raise UserError(f"no batch of {', '.join(map(str, sizes))} samples can be made: {problem}")


def shapes_only_if_large(module: TrainModule, batch: Batch) -> AbstractContextManager[Any]:
    """Within it a large network's step computes nothing; a small one's is done before its shapes would be worked out."""
    parameters = list(module.parameters())
    if 4 * sum(p.numel() for p in parameters) <= LARGE:
        return nullcontext()
    return ShapesOnly([*parameters, *(value for value in batch.values() if value.is_floating_point())])


class _Watch:
    """Within the block, notes what goes in and out of the modules and what autograd keeps."""

    def __init__(self, module: TrainModule) -> None:
        self._modules = {n: m for n, m in module.named_modules() if n and n.count(".") < DEPTH}
        self._shapes: dict[str, tuple[str, str]] = {}
        self._parts = list(module.recomputed())
        self._kept: dict[tuple[int, int], int] = {}  # by storage: what two operations keep is kept once
        self._within: list[dict[tuple[int, int], int]] = []  # the same of each call of a part
        self._inputs: dict[tuple[int, int], int] = {}  # of those calls
        self._now = self._kept
        self._own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    @property
    def saved(self) -> int:
        return sum({key: size for call in (self._kept, *self._within) for key, size in call.items()}.values())

    @property
    def spared(self) -> int:
        """What is kept outside of the parts, their inputs, and all of the largest part while it is computed again."""
        kept = self._kept | self._inputs
        largest = max((sum(n for key, n in call.items() if key not in kept) for call in self._within), default=0)
        return sum(kept.values()) + largest

    def __enter__(self) -> _Watch:
        self._hooks = [
            m.register_forward_hook(lambda _m, args, out, n=n: self._note(n, args, out))
            for n, m in self._modules.items()
        ]
        for part in self._parts:
            self._hooks.append(part.register_forward_pre_hook(self._begin))
            self._hooks.append(part.register_forward_hook(self._end))
        self._saving = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._saving.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._saving.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str, args: Any, out: Any) -> None:
        self._shapes.setdefault(name, (_shape(args), _shape(out)))

    def _begin(self, _part: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            self._inputs |= dict(map(_storage, (value for value in args if isinstance(value, Tensor))))
            self._within.append({})
            self._now = self._within[-1]

    def _end(self, _part: nn.Module, args: Any, out: Any) -> None:
        self._now = self._kept

    def _keep(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self._own:
            key, size = _storage(tensor)
            self._now[key] = size
        return tensor

    def stages(self) -> list[Stage]:
        found = []
        for name, module in self._modules.items():
            counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
            if not counts and name not in self._shapes:
                continue
            inputs, outputs = self._shapes.get(name, ("", ""))
            total, trainable = sum(n for n, _ in counts), sum(n for n, wanted in counts if wanted)
            found.append(Stage(name, type(module).__name__, total, trainable, inputs, outputs))
        return found


def _storage(tensor: Tensor) -> tuple[tuple[int, int], int]:
    """What names a tensor's memory and its content, and its bytes."""
    storage = tensor.untyped_storage()
    return (storage.data_ptr(), tensor._version), storage.nbytes()


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "scalar"
    if isinstance(value, tuple | list):
        return ", ".join(s for s in map(_shape, value) if s)
    if isinstance(value, dict):
        return ", ".join(f"{k} {s}" for k, v in value.items() if (s := _shape(v)))
    return ""


def show(config: RunConfig, folder: Path | None) -> None:
    """Print it, for a person."""
    from rich.console import Console
    from rich.table import Table

    found = describe(config, folder)
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("module", "type", "parameters", "trainable", f"in (batch {found.batch})", "out")
    for stage in found.stages:
        counts = (f"{stage.parameters:,}", f"{stage.trainable:,}")
        table.add_row(stage.name, stage.kind, *counts, stage.inputs, stage.outputs)
    table.add_section()
    table.add_row("all", "", f"{found.parameters:,}", f"{found.trainable:,}")
    for line in found.before:
        console.print(line)
    console.print("batch: " + ", ".join(f"{name} {shape}" for name, shape in found.shapes.items()))
    console.print(table)
    size = found.sizes
    fixed = sum(size[k] for k in ("weights", "gradients", "optimizer", "ema"))
    checkpoint = size["saved"] + size["optimizer"] + size["ema"]
    kept, spared = (found_bytes / found.batch / 1e6 for found_bytes in (found.saved, found.spared))
    console.print(
        f"memory a process: {fixed / 1e9:.2f} GB fixed, {kept:.1f} MB a sample (float32), {spared:.1f} with "
        f"trainer.activation_checkpointing; a checkpoint: {checkpoint / 1e9:.2f} GB"
    )
    console.print(
        f"arithmetic: {found.flops / found.batch / 1e9:.2f} GFLOP a sample and step, in {found.operations:,} operations a step"
    )
    console.print(recommendation(checkpoint))
    steps, batch = config.trainer.max_steps, config.data.batch_size
    console.print(f"{steps:,} steps of {batch} samples: {steps * batch:,} samples")


def main() -> int:
    """``python -m jobs.describe --json``: config and data folder as JSON on stdin, bytes as JSON on stdout."""
    tree = json.load(sys.stdin)
    config = parse_tree(tree["config"], "config")
    print(json.dumps(preflight_sizes(config, Path(tree["data"]) if tree["data"] else None)))
    return 0


if __name__ == "__main__":
    run_command(main)
