"""DeepSpeed's ZeRO under our own loop: every rank holds a share of what is trained (arXiv 1910.02054).

DeepSpeed's engine is used directly. Lightning's wrapper of it refuses CPUs, turns weights to bfloat16 where our precision means
autocast, and loads its checkpoints by unpickling; here both strategies compute the same function, one code path runs on CPUs and GPUs,
and a checkpoint is our own (``pipeline.shared_checkpoint``): whole parameters by name, as ``Replicated`` writes them. Another number
of ranks, another stage and plain data parallelism go on from it without a conversion.

Weights are float32 in every stage, so what a rank steps and what a layer computes with are equal numbers. Nothing of DeepSpeed is
compiled: optimizers are torch's own. What is not its public interface stands in ``_Partition``; the version is pinned.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.checkpoint import Checkpoint, StoredCheckpoint
from pipeline.compiling import as_it_is, compile_parts
from pipeline.config import RunConfig, TrainerSection
from pipeline.distributed import Agreement
from pipeline.ema import warmed_up
from pipeline.engine import Accumulation
from pipeline.errors import UserError
from pipeline.fabric import Fabric
from pipeline.saving import Saver
from pipeline.shared_checkpoint import save_together
from pipeline.train_module import Batch, Engine, TrainModule
from pipeline.train_state import LearningRates, Optimizers, PacedEngine

AVERAGE = "ema"  # the averages are one more state of the optimizer: sharded and gathered like its moments
BUCKET = 50_000_000  # elements that travel together, at most; DeepSpeed's default would reserve 2 GB


class Sharded:
    """A ``train_state.TrainState`` of which every rank holds a share; all of them write it."""

    def __init__(self, fabric: Fabric, module: TrainModule, config: RunConfig, ranks: Agreement, saver: Saver) -> None:
        self._fabric, self._module, self._config, self._ranks, self._saver = fabric, module, config, ranks, saver
        module.to(fabric.device)
        for parameter in module.parameters():  # DeepSpeed flattens them, and refuses what lies channels last
            parameter.data = parameter.data.contiguous()
        if config.trainer.compile:
            compile_parts(module)
        optimizers = module.configure_optimizers()
        if len(optimizers) != 1:
            raise UserError(f"DeepSpeed steps one optimizer, not {', '.join(optimizers)}: set trainer.strategy=ddp.")
        ((self._name, self._optimizer),) = optimizers.items()
        self._rates = LearningRates(optimizers, config)
        # As they are of whole parameters: DeepSpeed puts its own in their place.
        self._groups = self._optimizer.state_dict()["param_groups"]
        self._parameters: list[nn.Parameter] = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._saved_names = list(module.state_dict())
        self._names = {parameter: name for name, parameter in module.named_parameters()}

    def begin(self, stored: StoredCheckpoint | None) -> tuple[PacedEngine, Optimizers]:
        section = self._config.trainer
        if stored:
            self._module.load_state_dict(stored.parts["model"])
        deepspeed = import_deepspeed(self._fabric.device)
        self._gathered = deepspeed.zero.GatheredParameters
        self._engine, *_ = deepspeed.initialize(
            model=_Steps(self._module, self._fabric),
            optimizer=self._optimizer,
            config=engine_config(section, sum(p.numel() for p in self._parameters)),
            dist_init_required=False,
        )
        self._partition = _Partition(self._engine.optimizer, self._optimizer, section.deepspeed.stage)
        self._partition.make_states(averages=section.ema is not None)
        if stored:
            self._load_states(stored)
        return ZeroEngine(self._engine, section, self._fabric), {self._name: self._optimizer}

    def _load_states(self, stored: StoredCheckpoint) -> None:
        """Each rank takes its share of every moment and average; one whole tensor at a time is in memory."""
        present, read = stored.parts.names(), stored.parts.tensor
        for number, parameter in enumerate(self._parameters):
            names = {key: self._state_name(number, key) for key in self._partition.moments}
            if self._config.trainer.ema:
                names[AVERAGE] = f"{AVERAGE}.{self._names[parameter]}"
            for key, name in names.items():
                if name in present:  # a parameter that never had a gradient has no moments
                    self._partition.set_state(parameter, key, read(name))
        for key in self._partition.counters:
            counts = [read(name) for i in range(len(self._parameters)) if (name := self._state_name(i, key)) in present]
            if counts:
                self._partition.set_counter(key, max(float(count) for count in counts))

    def _state_name(self, number: int, key: str) -> str:
        return f"optimizer.{self._name}.state.{number}.{key}"

    def settle(self, engine: Engine, batch: Batch, step: int, counting: AbstractContextManager[None]) -> None:
        """Nothing: partitions and buckets are chosen from the parameters, alike in every attempt. What is compiled is compiled in the first
        step, since a backward beside the engine's would leave gradients in its buckets."""

    def set_learning_rate(self, step: int) -> dict[str, float]:
        return self._rates.set(step)

    def update_average(self, step: int) -> None:
        decay = self._config.trainer.ema
        if decay:
            averages, weights = self._partition.averages()
            torch._foreach_lerp_(averages, weights, 1 - warmed_up(decay, step))

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        self._engine.eval()
        with torch.no_grad(), as_it_is(self._config.trainer.compile):
            if self._config.trainer.ema:
                self._bear(AVERAGE)
                yield
                self._bear(None)
            else:
                yield
        self._engine.train()

    def _bear(self, state: str | None) -> None:
        """Let the layers compute with the averages, or (None) with the weights again."""
        for parameter in self._parameters:
            whole = self._whole(parameter, state)
            with self._gathered([parameter], modifier_rank=0):
                parameter.data.copy_(whole)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self._engine("validation_step", batch, step)

    @contextmanager
    def whole(self) -> Iterator[TrainModule | None]:
        """Rank 0 fills a second module: a forward of the shared one would need all ranks."""
        averaged = self._averaged_names()
        twin, first = None, self._ranks.world.rank == 0
        if first:
            twin = type(self._module)(self._config, self._module.data).to(self._fabric.device).eval()
        targets = twin.state_dict() if twin else {}
        with torch.no_grad():
            for name in self._saved_names:
                tensor = averaged[name]() if name in averaged else self._saved(name)
                if first:
                    targets[name].copy_(tensor)
            yield twin

    def save(self, step: int, facts: dict[str, Any]) -> None:
        moments, counters = self._partition.moments, self._partition.counters
        states = {
            number: {key: partial(self._whole, parameter, key) for key in moments} | counters
            for number, parameter in enumerate(self._parameters)
        }
        groups = [
            {**saved, "lr": live["lr"]} for saved, live in zip(self._groups, self._optimizer.param_groups, strict=True)
        ]
        parts: dict[str, Any] = {"model": {name: partial(self._saved, name) for name in self._saved_names}}
        parts[f"optimizer.{self._name}"] = {"state": states, "param_groups": groups}
        if self._config.trainer.ema:
            parts["ema"] = self._averaged_names()
        whole = Checkpoint(step, parts, facts)
        self._saver.here(step, lambda: save_together(self._saver.folder, whole, self._ranks))

    # -- whole tensors: collectives ---------------------------------------------------------------------------------

    def _whole(self, parameter: nn.Parameter, state: str | None) -> Tensor:
        """A trained parameter's weights, or one of its optimizer states, float32 in the parameter's shape."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if state is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, state)

    def _averaged_names(self) -> dict[str, partial[Tensor]]:
        if not self._config.trainer.ema:
            return {}
        return {self._names[parameter]: partial(self._whole, parameter, AVERAGE) for parameter in self._parameters}

    def _saved(self, name: str) -> Tensor:
        """What ``state_dict`` would hold under ``name``."""
        owner, _, leaf = name.rpartition(".")
        tensor = getattr(self._module.get_submodule(owner), leaf)
        with self._gathered([tensor] if isinstance(tensor, nn.Parameter) else []):
            return tensor.detach().clone()


class ZeroEngine(Accumulation):
    """The ``train_module.Engine`` over DeepSpeed's."""

    def __init__(self, engine: Any, section: TrainerSection, fabric: Fabric) -> None:
        super().__init__(section.micro_batch, fabric.device)
        self._engine, self._fabric, self._max_norm = engine, fabric, section.grad_clip
        self._gathers = section.deepspeed.stage == 3  # weights, layer by layer: ranks meet in the forward, too

    def autocast(self) -> AbstractContextManager[Any]:
        return self._fabric.autocast()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self._engine.set_gradient_accumulation_boundary(self._averaging)
        with self.pace.meeting() if self._gathers else nullcontext():
            return self._engine("training_step", batch, step)

    def backward(self, loss: Tensor) -> None:
        with self.pace.meeting():
            self._engine.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """As promised; the norm is over all ranks' shares. Raises FloatingPointError on all ranks where it is not finite."""
        assert max_norm == self._max_norm, "DeepSpeed is told once how far to clip"
        with self.pace.meeting():
            self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self._fabric.device)
        if not self._engine.was_step_applied():  # it would leave the step out in silence
            raise FloatingPointError("the gradient is not finite")
        return norm


class _Steps(nn.Module):
    """Both steps of a train module as one ``forward``, in the run's precision: ZeRO gathers weights around that."""

    def __init__(self, module: TrainModule, fabric: Fabric) -> None:
        super().__init__()
        self.module = module
        self._autocast = fabric.autocast

    def forward(self, name: str, batch: Batch, step: int) -> dict[str, Tensor]:
        with self._autocast():
            return getattr(self.module, name)(batch, step)


class _Partition:
    """A rank's flat float32 shares and their optimizer states; knows DeepSpeed's own names for them.

    ``moments`` are the states with a value per weight, ``counters`` those with one value (Adam's step).
    """

    def __init__(self, zero: Any, optimizer: torch.optim.Optimizer, stage: int) -> None:
        self._zero, self._optimizer, self._stage = zero, optimizer, stage
        self._flat = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups

    def make_states(self, *, averages: bool) -> None:
        """Let the optimizer make its states, all zero, and begin the averages at the weights.

        Its first step makes them. With a rate of zero that step moves no weight; what it wrote into the states is undone.
        """
        rates = [group["lr"] for group in self._optimizer.param_groups]
        if self._stage == 3:
            self._zero._set_fp32_optimizer_param_groups()
        for flat in self._flat:
            flat.grad = torch.zeros_like(flat)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._optimizer.step()
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if self._stage == 3:
            self._zero._clear_fp32_optimizer_param_groups()
        for flat in self._flat:
            flat.grad = None
            for value in self._optimizer.state[flat].values():
                value.zero_()
        states = self._optimizer.state[self._flat[0]]
        self.moments = [key for key, value in states.items() if value.shape == self._flat[0].shape]
        self.counters = {key: value for key, value in states.items() if value.ndim == 0}
        if averages:
            for flat in self._flat:
                self._optimizer.state[flat][AVERAGE] = flat.detach().clone()
        if self._stage < 3:  # else done at the first step, and until then nothing could be read or set
            self._zero._lazy_init_hp_params_optimizer_state()

    def averages(self) -> tuple[list[Tensor], list[Tensor]]:
        """This rank's averages and the weights they follow, pairwise."""
        return [self._optimizer.state[flat][AVERAGE] for flat in self._flat], [flat.detach() for flat in self._flat]

    def set_state(self, parameter: nn.Parameter, key: str, whole: Tensor) -> None:
        """Take this rank's part of a state. Stage 3 cuts the parameter into equal parts, the last of them padded.

        DeepSpeed's own way from whole to part overruns where the number of ranks does not divide the parameter (0.19.8).
        """
        from deepspeed.utils import (
            safe_get_local_optimizer_state,
            safe_set_full_optimizer_state,
            safe_set_local_optimizer_state,
        )

        if self._stage < 3:
            safe_set_full_optimizer_state(parameter, whole.to(parameter.device), key)
            return
        size = safe_get_local_optimizer_state(parameter, key).numel()
        part = whole.flatten()[size * dist.get_rank() : size * (dist.get_rank() + 1)].to(parameter.device)
        safe_set_local_optimizer_state(parameter, nn.functional.pad(part, (0, size - part.numel())), key)

    def set_counter(self, key: str, value: float) -> None:
        for flat in self._flat:
            self._optimizer.state[flat][key].fill_(value)


def import_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed for ``device``, told what it would otherwise guess or compile. The process group is there already."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # the device it makes its own
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    if device.type == "cpu":
        __compatible_ops__["deepspeed_shm_comm"] = False  # a minute of C++ compiler for tests on gloo
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Each of its calls would warn.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


def engine_config(section: TrainerSection, parameters: int) -> dict[str, Any]:
    """DeepSpeed's config. Batches, schedule, precision and accumulation are the loop's; it is told of none of them."""
    bucket = min(BUCKET, -(-parameters // 1024) * 1024)  # it wants even numbers
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": section.grad_clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": section.deepspeed.stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
