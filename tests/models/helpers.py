"""What the tests of systems share: the demo configs, the facts of their data, and a loop without ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.configs import PairsLink, load_link, load_named
from models import registry
from pipeline.config import RunConfig
from pipeline.train_module import Batch, TrainModule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def demo_configs() -> list[str]:
    """Names of all configs called ``<system>*_demo`` (every system has one), and one ``..._demo_...`` for each other kind of training."""
    found = [path.stem for path in sorted(CONFIGS.glob("*_demo.yaml"))]
    for system in registry.systems():
        assert any(name.startswith(system) for name in found), f"models/{system} has no configs/{system}*_demo.yaml"
    kinds = {load(name).model.part_folder for name in found}
    for name in (path.stem for path in sorted(CONFIGS.glob("*_demo_*.yaml"))):
        link = load_link(name)
        if not isinstance(link, PairsLink) and link.model.part_folder not in kinds:
            kinds.add(link.model.part_folder)
            found.append(name)
    return found


def load(name: str, *overrides: str) -> RunConfig:
    return load_named(name, overrides)


def info(name: str, *overrides: str) -> dict[str, Any]:
    """What the manifest of a config's data says."""
    config = load(name, *overrides)
    return registry.part(config.model, "train_module").TrainModule.typical_data(config)


def build(config: RunConfig, seed: int = 0) -> TrainModule:
    torch.manual_seed(seed)
    kind = registry.part(config.model, "train_module").TrainModule
    return kind(config, kind.typical_data(config))


# What makes the host wait for the device: it has to know the outcome before it can go on.
WAITS = {"_local_scalar_dense", "equal", "nonzero", "_unique2", "masked_select"}


class Waits(TorchDispatchMode):
    """Notes the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.found.add(name)
        return function(*args, **(kwargs or {}))


class Names(TorchDispatchMode):
    """Notes the operations of a block."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[str, Any]] = []

    @property
    def found(self) -> set[str]:
        return {name for name, _ in self._seen}

    def of_kind(self, names: Sequence[str], kind: Any) -> set[str]:
        """Those of ``names`` whose result is of that kind."""
        return {name for name, is_kind in self._seen if name in names and kind(torch.empty(0, dtype=is_kind))}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self._seen.append((function.overloadpacket.__name__, made.dtype if isinstance(made, Tensor) else torch.int64))
        return made


@contextmanager
def channels_last_wanted(module: nn.Module) -> Iterator[list[str]]:
    """The names of convolutions on two axes whose input does not lie with its channels last in memory, as they are called."""
    apart: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not inputs[0].is_contiguous(memory_format=torch.channels_last):
                apart.append(name)

        return hook

    handles = [
        part.register_forward_pre_hook(look(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d)
    ]
    assert handles, "there is no convolution on two axes"
    yield apart
    for handle in handles:
        handle.remove()


class PlainEngine:
    """The engine of a single process: the whole batch at once, nothing averaged."""

    def __init__(self, module: TrainModule) -> None:
        self.module = module

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        yield batch, 1.0

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.module.training_step(batch, step)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
        optimizer.step()
        return norm


def train(
    module: TrainModule, optimizers: dict[str, torch.optim.Optimizer], batches: Sequence[Batch], first: int
) -> list[float]:
    """One optimizer step on each batch; the losses."""
    engine = PlainEngine(module)
    return [float(module.optimize(engine, b, optimizers, first + i)["loss"]) for i, b in enumerate(batches)]
