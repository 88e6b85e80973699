"""CQTML for other programs: load a run, turn music into light, tell which of two outputs people would prefer.

    from models.cqtml import api

    generator = api.load("runs/cqtml/1f3a9c2e")
    cqt = api.listen(wave)                                        # (n,) at 22,050 Hz
    lights = api.generate_deterministic(generator, cqt)           # (4, T) brightness, FRAME_RATE a second
    several = api.generate_stochastic(generator, cqt, temperature=0.5, samples=8)
    rewards = api.score(api.load("runs/cqtml_reward/9be04d11"), cqt, several)

What is longer than a training segment goes through the network in windows of that length, each by itself, and the windows' logits are
blended: so an output does not depend on what else is computed beside it. Deterministic outputs are the same bits in every run on one
kind of machine with one number of threads; another may round the logits otherwise, and a level changes where two of them were equally
likely but for that rounding.

Shapes: n audio samples, T = 1 + n // 64 frames, C patch columns, S outputs, 4 lights, K levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.cqtml.brightness import draw, most_likely, to_frames
from models.cqtml.config import BINS, FRAME_RATE, Head, ModelConfig
from models.cqtml.network import Generator
from models.cqtml.taste import Taste
from models.cqtml.vit import PATCH
from models.features import log_cqt
from models.windows import overlap_add, window_starts
from pipeline import checkpoint, rng
from pipeline.config import parse_config, read_yaml
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.rng import KeyedRandom
from pipeline.runs import RunFolder
from pipeline.train_module import TrainModule

__all__ = ["FRAME_RATE", "generate_deterministic", "generate_stochastic", "listen", "load", "score"]


class Generating(Protocol):
    """The train module of a generator or of a policy."""

    model_config: ModelConfig
    generator: Generator


class Judging(Protocol):
    """The train module of a reward."""

    taste: Taste


def load(folder: str | Path, device: str = "cpu") -> TrainModule:
    """The module of a generator's, reward's or policy's run, with its newest good weights, in evaluation mode.

    Raises UserError where the folder is no such run, or has no checkpoint.
    """
    run = RunFolder(Path(folder))
    data = read_json(run.data_file)
    if data is None or not run.config_file.is_file():
        raise UserError(f"{folder} is no run folder; give one such as runs/cqtml/1f3a9c2e.")
    config = parse_config(read_yaml(run.config_file), ModelConfig, str(run.config_file))
    assert isinstance(config.model, ModelConfig)
    module = module_class(config.model)(config, data["info"])
    checkpoint.load_weights(module, run.path)
    return module.to(device).eval()


def module_class(model: ModelConfig) -> type[TrainModule]:
    """The train module of one kind of run."""
    from models.cqtml.generator import train_module as generator
    from models.cqtml.policy import train_module as policy
    from models.cqtml.reward import train_module as reward

    kinds: dict[str, type[TrainModule]] = {
        "generator": generator.TrainModule,
        "reward": reward.TrainModule,
        "policy": policy.TrainModule,
    }
    return kinds[model.kind]


def listen(wave: np.ndarray | Tensor) -> Tensor:
    """(n,) at 22,050 Hz, full scale 1 -> (2, 84, T), the CQT as it is prepared. ValueError where there is none: never a substitute."""
    return log_cqt(torch.as_tensor(wave).double()).float()


def generate_deterministic(module: Generating, cqt: Tensor) -> Tensor:
    """The most likely output: (2, 84, T) -> brightness (4, T)."""
    logits = whole_logits(module, cqt)
    return to_frames(most_likely(logits[None], module.model_config.head), cqt.shape[-1])[0]


def generate_stochastic(
    module: Generating, cqt: Tensor, temperature: float = 1.0, samples: int = 1, seed: int = 0, dropout: bool = False
) -> Tensor:
    """Outputs drawn from what the network says: (2, 84, T) -> (S, 4, T). Output i depends on ``seed`` and i, not on how many are drawn.

    Args:
        temperature: divides the logits; 1 is what the network says.
        dropout: keep dropout on, one mask for each output (Gal and Ghahramani 1506.02142).

    Raises ValueError for a temperature that is not greater than 0.
    """
    if temperature <= 0:
        raise ValueError(
            f"a temperature is greater than 0, not {temperature}; for the limit use generate_deterministic"
        )
    head = module.model_config.head
    once = None if dropout else whole_logits(module, cqt)
    outputs = []
    for number in range(samples):
        logits = once
        if logits is None:
            with _dropout(module.generator, rng.key(seed, "cqtml/dropout", number)):
                logits = whole_logits(module, cqt)
        outputs.append(draw_one(logits, head, cqt.shape[-1], temperature, seed, number))
    return torch.stack(outputs)


def draw_one(logits: Tensor, head: Head, frames: int, temperature: float, seed: int, number: int = 0) -> Tensor:
    """Output ``number`` under ``seed`` of a song's logits (4, K, C): brightness (4, T)."""
    uniform = KeyedRandom(seed).uniform("cqtml/draw", torch.tensor([number]), tuple(logits.shape), logits.device)
    return to_frames(draw(logits[None], uniform[None], temperature, head), frames)[0, 0]


@torch.no_grad()
def score(module: Judging, cqt: Tensor, lights: Tensor) -> Tensor:
    """Rewards (S,) of outputs (S, 4, T) for (2, 84, T), higher is preferred; only differences mean something."""
    device = module.taste.hearing.mean.device
    return module.taste(cqt[None].to(device), lights[None].to(device))[0]


@torch.no_grad()
def whole_logits(module: Generating, cqt: Tensor) -> Tensor:
    """(2, 84, T) -> (4, K, C), in windows as long as what positions were learned for, each by itself."""
    if cqt.ndim != 3 or cqt.shape[:2] != (2, BINS):
        raise ValueError(f"a CQT is (2, {BINS}, T), not {tuple(cqt.shape)}")
    cqt = cqt.to(module.generator.hearing.mean.device)
    columns, window = -(-cqt.shape[-1] // PATCH), module.model_config.body.columns
    if columns <= window:
        return module.generator(cqt[None])[0]
    starts = window_starts(columns, window)
    pieces = [module.generator(cqt[None, ..., s * PATCH : (s + window) * PATCH])[0] for s in starts]
    return overlap_add(torch.stack(pieces), starts, columns)


@contextmanager
def _dropout(generator: Generator, seed: int) -> Iterator[None]:
    """Within the block dropout drops, by masks that ``seed`` decides."""
    layers = [layer for layer in generator.modules() if isinstance(layer, nn.Dropout)]
    if not any(layer.p for layer in layers):
        raise UserError("this run was trained without dropout, so it has none to draw with; use a temperature.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()
