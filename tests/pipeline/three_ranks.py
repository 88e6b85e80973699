"""One rank of three: trains a run in one attempt, another in two, and one whose data does harm. ``python three_ranks.py FOLDER RANK``."""

import math
import sys
from pathlib import Path

import torch
from torch import nn

from jobs import rendezvous
from pipeline.attempt import Attempt
from pipeline.config import ModelSection, parse_config
from pipeline.control import StopFlag
from pipeline.distributed import make_fabric
from pipeline.health import RolledBack
from pipeline.manifest import read_manifest
from pipeline.runs import RunFolder
from pipeline.train_module import TrainModule
from pipeline.trainer import Trainer
from pipeline.world import World

RANKS = 3


class Branches(TrainModule):
    """Parameters of many sizes whose gradients come in another order than the parameters are listed in."""

    def __init__(self, config, data, harmful: int):
        super().__init__(config, data)
        self.harmful = harmful
        self.first = nn.Linear(15, 37)
        self.branches = nn.ModuleList(nn.Linear(37, width) for width in (5, 101, 3, 211, 7))

    def training_step(self, batch, step):
        hidden = self.first(batch["mel"].flatten(1)).tanh()
        outputs = [self.branches[i](hidden) for i in (3, 0, 4, 2, 1)]
        harm = math.nan if self.harmful in batch["position"] else 1.0
        return {"loss": harm * torch.cat(outputs, 1).square().mean() + batch["id"].float().mean()}


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    world = World(rank, RANKS, rank, RANKS, 0)
    rendezvous.join(RunFolder(folder / "whole"), world, "three", "127.0.0.1")
    for name, ends in (("whole", [8]), ("pieces", [3, 8])):
        for end in ends:
            train(RunFolder(folder / name), world, read_manifest(folder / "data"), end)
    try:
        train(RunFolder(folder / "harmed"), world, read_manifest(folder / "data"), 8, harmful=40)
    except RolledBack:  # on every rank, or the next attempt would wait for ever
        train(RunFolder(folder / "harmed"), world, read_manifest(folder / "data"), 8, harmful=40)


def train(run: RunFolder, world: World, manifest, max_steps: int, harmful: int = -1) -> None:
    tree = {
        "model": {"system": "branches"},
        "data": {"recipe": "toy", "batch_size": 9},
        "optimizer": {"lr": 0.01},
        "trainer": {"max_steps": max_steps, "save_every": 100},
    }
    config = parse_config(tree, ModelSection, "test")
    torch.manual_seed(0)
    attempt = Attempt(run.claim_attempt() if world.rank == 0 else None, StopFlag())
    Trainer(
        run, config, Branches(config, {}, harmful), manifest, make_fabric(config.trainer, world), world, attempt
    ).fit()


if __name__ == "__main__":
    main()
