"""One rank of Jingle_D's training on the tiny data. ``python -m tests.models.jingle_d_ranks FOLDER RANK RANKS``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from jobs import rendezvous
from models.jingle_d.train_module import TrainModule
from pipeline.attempt import Attempt
from pipeline.control import StopFlag
from pipeline.distributed import make_fabric
from pipeline.manifest import read_manifest
from pipeline.runs import RunFolder
from pipeline.trainer import Trainer
from pipeline.world import World
from tests.models.helpers import load
from tests.models.jingle_d_data import TINY, tiny_info

STEPS = 3


def fit(folder: Path, rank: int, ranks: int) -> TrainModule:
    torch.set_num_threads(1)
    run, world = RunFolder(folder / f"run{ranks}"), World(rank, ranks, rank, ranks, 0)
    if ranks > 1:
        rendezvous.join(run, world, "jingle", "127.0.0.1")
    overrides = (
        f"trainer.max_steps={STEPS}", f"trainer.validate_every={STEPS}", "trainer.log_every=1", "trainer.sample_every=null",
        "model.balancer={total: 0.1, decay: 0.9}", "model.losses.latent_adversary=0.1", "model.losses.audio_adversary=0.1",
    )  # fmt: skip
    config = load("jingle_d_demo", *TINY, *overrides)
    torch.manual_seed(0)
    module = TrainModule(config, tiny_info())
    attempt = Attempt(run.claim_attempt() if rank == 0 else None, StopFlag())
    Trainer(
        run, config, module, read_manifest(folder / "data"), make_fabric(config.trainer, world), world, attempt
    ).fit()
    return module


if __name__ == "__main__":
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.save(fit(folder, rank, ranks).state_dict(), folder / f"rank{rank}of{ranks}.pt")
