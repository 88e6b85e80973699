"""One rank of a GAN's training: in one attempt, and in two. ``python gan_ranks.py FOLDER RANK RANKS``."""

import sys
from pathlib import Path

import torch
from torch import nn

from jobs import rendezvous
from pipeline.attempt import Attempt
from pipeline.config import ModelSection, parse_config
from pipeline.control import StopFlag
from pipeline.distributed import make_fabric
from pipeline.manifest import read_manifest
from pipeline.runs import RunFolder
from pipeline.train_module import TrainModule, build_optimizer
from pipeline.trainer import Trainer
from pipeline.world import World


class GanConfig(ModelSection):
    optimizers = ("generator", "discriminator")


class Gan(TrainModule):
    """A generator of points beside the data's, and who tells them apart."""

    def __init__(self, config, data):
        super().__init__(config, data)
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 15))
        self.discriminator = nn.Sequential(nn.Linear(15, 16), nn.Tanh(), nn.Linear(16, 1))

    def configure_optimizers(self):
        return {
            name: build_optimizer(list(getattr(self, name).parameters()), self.config.optimizer_of(name)[0])
            for name in self.config.model.optimizers
        }

    def averaged_parameters(self):
        return ((name, p) for name, p in super().averaged_parameters() if name.startswith("generator"))

    def optimize(self, engine, batch, optimizers, step):
        """The generator runs once: the discriminator learns from what it made, then it from the discriminator."""
        first, second = optimizers.values()
        real = batch["mel"].flatten(1) / 10
        with engine.autocast():
            made = self.generator(self.random.normal("gan", batch["position"], (4,)))
            told = nn.functional.softplus(-self.discriminator(real)) + nn.functional.softplus(
                self.discriminator(made.detach())
            )
        second.zero_grad()
        engine.backward(told.mean())
        norm_d = engine.step(second, self.config.optimizer_of("discriminator")[1])
        with engine.autocast():
            loss = nn.functional.softplus(-self.discriminator(made)).mean()
        first.zero_grad()
        engine.backward(loss)
        norm_g = engine.step(first, self.config.trainer.grad_clip)
        logged = {"loss": loss, "told": told.mean(), "grad_norm": norm_g, "grad_norm_discriminator": norm_d}
        return {name: value.detach() for name, value in logged.items()}


def main() -> None:
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    world = World(rank, ranks, rank, ranks, 0)
    if ranks > 1:
        rendezvous.join(RunFolder(folder / f"whole{ranks}"), world, "gan", "127.0.0.1")
    for name, ends in ((f"whole{ranks}", [12]), (f"pieces{ranks}", [5, 12])):
        for end in ends:
            module = train(RunFolder(folder / name), world, read_manifest(folder / "data"), end)
    torch.save(module.state_dict(), folder / f"rank{rank}of{ranks}.pt")


def train(run: RunFolder, world: World, manifest, max_steps: int) -> Gan:
    tree = {
        "model": {"system": "gan"},
        "data": {"recipe": "toy", "batch_size": 8},
        "optimizer": {
            "lr": 0.01,
            "also": {
                "discriminator": {"lr": 0.02, "betas": [0.5, 0.9], "grad_clip": 1.0, "schedule": {"warmup_steps": 4}}
            },
        },
        "trainer": {"max_steps": max_steps, "save_every": 100, "ema": 0.9, "log_every": 1},
    }
    config = parse_config(tree, GanConfig, "test")
    torch.manual_seed(0)
    module = Gan(config, {})
    attempt = Attempt(run.claim_attempt() if world.rank == 0 else None, StopFlag())
    Trainer(run, config, module, manifest, make_fabric(config.trainer, world), world, attempt).fit()
    return module


if __name__ == "__main__":
    main()
