"""Where this process stands among its peers, and the Lightning Fabric that fits.

The process group is made by ``jobs.rendezvous`` before Fabric sees it; Fabric finds it initialised and uses it. Besides the group that
gradients travel in there is a small gloo group for agreements, so that asking "must we stop?" never makes a GPU wait.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config import TrainerSection
from pipeline.fabric import ClusterEnvironment, DDPStrategy, Fabric, SingleDeviceStrategy, Strategy
from pipeline.world import World


class KnownWorld(ClusterEnvironment):
    """Tells Fabric the world that we know, so that it neither guesses a scheduler nor installs signal handlers."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    creates_processes_externally = property(lambda self: True)
    main_address = property(lambda self: "unused: the process group exists already")
    main_port = property(lambda self: 0)

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._world.size

    def set_world_size(self, size: int) -> None:
        assert size == self._world.size

    def global_rank(self) -> int:
        return self._world.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._world.rank

    def local_rank(self) -> int:
        return self._world.local_rank

    def node_rank(self) -> int:
        return self._world.node


def device_kind() -> str:
    """``cuda`` where there is a GPU, else ``cpu``: MPS has no data-parallel backend, so training leaves it alone."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_fabric(section: TrainerSection, world: World) -> Fabric:
    """A launched Fabric: DDP over the existing process group, or one plain device where the world is one process."""
    kind = device_kind()
    strategy: Strategy
    if world.size > 1:
        # Gradients are views of the buckets that travel: one copy of them less in memory and time.
        # Buffers are the same on every rank by contract, so they need not travel before every step.
        strategy = DDPStrategy(gradient_as_bucket_view=True, forward_sync_buffers=False)
    else:
        strategy = SingleDeviceStrategy(torch.device(kind, world.local_rank) if kind == "cuda" else torch.device("cpu"))
    precision: Any = {"32": "32-true", "bf16": "bf16-mixed"}[section.precision]
    many = {"devices": world.local_size, "num_nodes": world.nodes} if world.size > 1 else {"devices": 1}
    plugins = [KnownWorld(world)]
    fabric = Fabric(accelerator=kind, strategy=strategy, precision=precision, plugins=plugins, **many)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


class Agreement:
    """What ranks tell each other beside gradients. The maximum overlaps with the step: begin it before, read it after."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._value = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None

    def begin(self, mine: int) -> None:
        self._value.fill_(mine)
        if self._group is not None:
            self._work = dist.all_reduce(self._value, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> int:
        if self._work is not None:
            self._work.wait()
        return int(self._value)

    def maximum(self, mine: int) -> int:
        """The largest of all ranks' numbers, at once."""
        self.begin(mine)
        return self.result()

    def gather(self, row: Tensor) -> Tensor:
        """All ranks' CPU rows (n,) as (ranks, n), in order of rank."""
        if self._group is None:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.world.size)]
        dist.all_gather(rows, row, group=self._group)
        return torch.stack(rows)

    def total(self, values: Tensor) -> Tensor:
        """Sum of a float64 CPU tensor over all ranks, in place."""
        if self._group is not None:
            dist.all_reduce(values, group=self._group)
        return values
