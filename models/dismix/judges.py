"""What the judges of both cases share: a classifier of clips, how judges learn, where they are kept, and what they are asked.

A judge learns from clean, single sources of the validation split, so unlike the paper's it never sees DisMix's training tracks.
Judges are kept beside the figures they gave, under a name that hashes their data and their recipe, and are taken from there again.

Shapes: K clips, C mel bands, T frames, B mixtures, N sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.dismix.simple.encoders import SpectrogramEncoder
from pipeline.files import write_atomic
from pipeline.progress import StepProgress
from pipeline.rng import KeyedRandom

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """How judges are made; part of their name."""

    clips: int = 20000  # at most so many clean sources
    width: int = 64
    latent: int = 64
    steps: int = 700
    batch: int = 64
    rate: float = 2e-3
    noise: float = 0.1  # standard deviations added to training mels: a judge should not hang on the last decibel
    seed: int = 0


class Judge(nn.Module):
    """The paper's (Appendix B.1, "Evaluation"): encoder of Table 4, then Linear-ReLU, Linear-ReLU, Linear to the classes."""

    def __init__(self, mel_bands: int, classes: int, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.latent
        self.encoder = SpectrogramEncoder(mel_bands, recipe.width, width)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )

    def forward(self, mel: Tensor) -> Tensor:
        """(K, C, T) standardised log-mel -> (K, classes) logits."""
        return self.head(self.encoder(mel))


def kept(folder: Path, facts: list[object], recipe: Recipe, build: Callable[[], M], learn: Callable[[M], None]) -> M:
    """Judges out of ``folder`` if they are there, else built from the recipe's seed, taught, and saved there.

    ``facts`` are what they depend on beside the recipe: JSON, hashed into their name.
    """
    name = hashlib.sha256(json.dumps([*facts, asdict(recipe)]).encode()).hexdigest()[:8]
    path = folder / f"judges_{name}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        judges = build()
    if path.is_file():
        judges.load_state_dict(load_file(path))
        return judges.eval()
    learn(judges)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(judges.state_dict()))
    return judges.eval()


def rotation(position: Tensor, sources: int) -> Tensor:
    """Where each source's new pitch comes from, (B, N): a rotation by 1 .. N-1, drawn by the sample's position."""
    draw = KeyedRandom(0).uniform("dismix/rotation", position, (1,))
    shift = 1 + (draw * (sources - 1)).long().clamp_max(max(sources - 2, 0))
    return (torch.arange(sources) + shift) % sources


def fit(judge: nn.Module, mel: Tensor, label: Tensor, recipe: Recipe) -> None:
    """Cross-entropy of logits (K, classes, ...) and labels (K, ...) with AdamW, its rate falling on a cosine.

    Batches and noise come from the recipe's seed.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=recipe.rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    order = torch.empty(0, dtype=torch.int64)
    progress = StepProgress("a classifier that judges", recipe.steps, 0)
    for step in range(recipe.steps):
        if progress.due():
            progress.update(step, "")
        if len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(len(mel), generator=generator)])
        rows, order = order[: recipe.batch], order[recipe.batch :]
        noisy = mel[rows] + recipe.noise * torch.randn(mel[rows].shape, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(judge(noisy), label[rows]).backward()
        optimizer.step()
        schedule.step()
    progress.update(recipe.steps, "")
    progress.close()
