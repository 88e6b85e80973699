"""The smallest model in which everything that ZeRO treats differently occurs, trained by the real loop on real shards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import shared_checkpoint
from pipeline.attempt import Attempt
from pipeline.config import ModelSection, RunConfig, parse_config
from pipeline.control import StopFlag
from pipeline.distributed import make_fabric
from pipeline.manifest import read_manifest
from pipeline.runs import RunFolder
from pipeline.train_module import TrainModule
from pipeline.trainer import Trainer
from pipeline.world import World


class Head(nn.Module):
    """Its gain is the weight without a layer. It is what may be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(7)
        self.last = nn.Linear(7, 1)
        self.gain = nn.Parameter(torch.ones(7))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(hidden) * self.gain).squeeze(1)


class Stack(TrainModule):
    """Layers of sizes that no number of ranks divides, a recurrence, a weight that lies by columns, one without a layer, one that is
    frozen, and a buffer."""

    seen: torch.Tensor

    def __init__(self, config: RunConfig, data: dict[str, Any], poison: int = 0) -> None:
        super().__init__(config, data)
        self.first = nn.Linear(5, 13)
        self.first.weight.data = self.first.weight.data.T.contiguous().T
        self.recurrence = nn.GRU(13, 7, batch_first=True)
        self.head = Head()
        self.frozen = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)
        self.register_buffer("seen", torch.zeros(()))
        self.poison = poison

    def _error(self, batch, noise=0.0):
        hidden, _ = self.recurrence(torch.relu(self.first(batch["mel"] + noise)))
        value = self.head(hidden[:, -1]) + self.frozen.sum()
        return (value - batch["id"].float() / 50).square().mean()

    def training_step(self, batch, step):
        noise = 0.01 * self.random.normal("stack", batch["position"], (3, 5), batch["mel"].device)
        self.seen += 1
        loss = self._error(batch, noise)
        autocast = torch.full_like(loss, float(torch.is_autocast_enabled("cpu"))).detach()
        return {"loss": loss * float("nan") if step == self.poison else loss, "autocast": autocast}

    def validation_step(self, batch, step):
        return {"loss": self._error(batch)}

    def compiled(self):
        yield self.head

    def recomputed(self):
        yield from (self.first, self.recurrence, self.head)

    def sample(self, batch, folder: Path, step: int) -> None:
        (folder / "loss.txt").write_text(str(float(self._error(batch))))


STEPS = 12


def config_of(**trainer: Any) -> RunConfig:
    tree = {
        "model": {"system": "stack"},
        "data": {"recipe": "toy", "batch_size": 8},
        "optimizer": {"lr": 0.01, "weight_decay": 0.1, "schedule": {"name": "cosine", "warmup_steps": 3, "decay_steps": 40}},
        "trainer": {
            "max_steps": STEPS, "log_every": 1, "save_every": 4, "validate_every": 6, "ema": 0.9, "grad_clip": 1.0,
            "keep": {"last": 3}, **trainer,
        },
    }  # fmt: skip
    return parse_config(tree, ModelSection, "test")


def trainer_of(world: World, data: str, path: str, poison: int = 0, **section: Any) -> Trainer:
    config, run = config_of(**section), RunFolder(Path(path))
    run.create()
    torch.manual_seed(0)
    module = Stack(config, {}, poison)
    attempt = run.claim_attempt() if world.rank == 0 else None
    fabric = make_fabric(config.trainer, world)
    return Trainer(run, config, module, read_manifest(Path(data)), fabric, world, Attempt(attempt, StopFlag()))


def train(world: World, data: str, path: str, section: dict[str, Any], poison: int = 0) -> str:
    """One attempt of this rank; the name of what ended it."""
    return trainer_of(world, data, path, poison, **section).fit().name


def die_while_saving(world: World, data: str, path: str, section: dict[str, Any], rank: int, moment: str) -> str:
    """Like ``train``, but a rank is killed at the second checkpoint: half of its file is there, or it has just done ``moment``."""
    real, calls = getattr(shared_checkpoint, moment), []

    def deadly(*words: Any) -> Any:
        result = real(*words)
        calls.append(words)
        if len(calls) == 2 and world.rank == rank:
            if moment == "write_tensors":
                os.truncate(words[0], words[0].stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(shared_checkpoint, moment, deadly)
    return train(world, data, path, section)
