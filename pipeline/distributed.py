"""Where this process stands among its peers, and the Lightning Fabric that fits.

The process group is made by ``jobs.rendezvous`` before Fabric sees it; Fabric finds it initialised and uses it. Besides the group that
gradients travel in there is a small gloo group for agreements, so that asking "must we stop?" never makes a GPU wait.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config import TrainerSection
from pipeline.errors import RunFailed
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


class Ddp(DDPStrategy):
    """DDP that leaves batches alone: told of a GPU, torch would take to it also the positions, which are the host's, and wait for them in
    every micro-batch; and Lightning would build DDP on a stream of its own, by which every gradient would then be waited for."""

    def _determine_ddp_device_ids(self) -> None:
        return None


def own_device(world: World) -> torch.device:
    """The GPU of this process' number on its node, else the CPU. RunFailed where SLURM shows it fewer GPUs."""
    if device_kind() == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if world.local_rank >= there:
        raise RunFailed(
            f"rank {world.rank} is process {world.local_rank} of its node and is shown {there} GPU(s), "
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}: every rank must see all of them; "
            "launch with --gpus as many, or take what binds GPUs to tasks out of the cluster's profile."
        )
    return torch.device("cuda", world.local_rank)


def device_kind() -> str:
    """``cuda`` where there is a GPU, else ``cpu``: MPS has no data-parallel backend, so training leaves it alone."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_fabric(section: TrainerSection, world: World) -> Fabric:
    """A launched Fabric: DDP over the existing process group, or one plain device where the world is one process."""
    kind, device = device_kind(), own_device(world)
    choose_arithmetic(section)
    # Gradients are views of the buckets that travel: one copy of them less in memory and time.
    # Buffers are the same on every rank by contract, so they need not travel before every step.
    ddp = Ddp(gradient_as_bucket_view=True, forward_sync_buffers=False)
    strategy: Strategy = ddp if world.size > 1 else SingleDeviceStrategy(device)
    precision: Any = "bf16-mixed" if section.precision == "bf16" else "32-true"
    many = {"devices": world.local_size, "num_nodes": world.nodes} if world.size > 1 else {"devices": 1}
    plugins = [KnownWorld(world)]
    fabric = Fabric(accelerator=kind, strategy=strategy, precision=precision, plugins=plugins, **many)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def choose_arithmetic(section: TrainerSection) -> None:
    """What float32 means on a GPU, for this process: torch's own choice is TF32 for convolutions and not for other products.

    And whether sums may come out in any order. Where that is refused, torch takes what always adds in one order, attention included, and
    raises RuntimeError at what has no such form.
    """
    fast = section.precision == "tf32"
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cudnn.deterministic = section.deterministic
    if section.deterministic or torch.are_deterministic_algorithms_enabled():  # sparing all others what this imports
        torch.use_deterministic_algorithms(section.deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


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
