"""The judges: a pitch and an instrument classifier for clean, single sources, which then judge what DisMix renders.

Their architecture is the paper's (Appendix B.1, "Evaluation"): the Conv1d encoder of Table 4 and a three-layer MLP.
Unlike the paper's they never see DisMix's training tracks: they learn from the sources of the validation split. They are
kept beside the figures they gave, under a name that hashes their data and their recipe, and are taken from there again.

Shapes: K clips, C mel bands, T frames.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.dismix.encoders import SpectrogramEncoder
from pipeline.loader import Evaluation
from pipeline.shards import Manifest


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
    """Encoder of Table 4, then Linear-ReLU, Linear-ReLU, Linear to the classes."""

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


class Judges(nn.Module):
    """Both judges; ``pitch`` counts classes from the lowest pitch of the data."""

    def __init__(self, mel_bands: int, pitches: int, instruments: int, recipe: Recipe) -> None:
        super().__init__()
        self.pitch = Judge(mel_bands, pitches, recipe)
        self.instrument = Judge(mel_bands, instruments, recipe)

    @torch.no_grad()
    def verdict(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(..., C, T) standardised log-mel -> pitch class and instrument, each int64 (...)."""
        flat = mel.flatten(0, -3)
        pitch, instrument = self.pitch(flat).argmax(-1), self.instrument(flat).argmax(-1)
        return pitch.unflatten(0, mel.shape[:-2]), instrument.unflatten(0, mel.shape[:-2])


def trained_judges(manifest: Manifest, folder: Path, recipe: Recipe | None = None) -> Judges:
    """Judges for this data, out of ``folder`` if they are there, else trained in seconds on the CPU and saved there."""
    recipe, info = recipe or Recipe(), manifest.info
    name = hashlib.sha256(json.dumps([manifest.identity, asdict(recipe)]).encode()).hexdigest()[:8]
    path = folder / f"judges_{name}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        pitches = info["pitch_high"] - info["pitch_low"] + 1
        judges = Judges(info["mel"]["bands"], pitches, len(info["instruments"]), recipe)
    if path.is_file():
        judges.load_state_dict(load_file(path))
        return judges.eval()
    mel, pitch, instrument = clean_sources(manifest, "valid", recipe.clips)
    mel = (mel - info["mean"]) / info["std"]
    _fit(judges.pitch, mel, pitch - info["pitch_low"], recipe)
    _fit(judges.instrument, mel, instrument, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(judges.state_dict(), path)
    return judges.eval()


def clean_sources(manifest: Manifest, split: str, at_most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mels (K, C, T), MIDI pitches and instruments (K,) of a split's sources, out of whole mixtures."""
    batch_size = 64
    batches = math.ceil(at_most / (batch_size * manifest.info["sources"]))
    parts: dict[str, list[Tensor]] = {"sources": [], "pitch": [], "instrument": []}
    for batch in Evaluation(manifest, split, batch_size=batch_size, limit=batches):
        for name, tensors in parts.items():
            tensors.append(batch[name].flatten(0, 1).clone())  # the loader's memory is used again
    mel, pitch, instrument = (torch.cat(tensors) for tensors in parts.values())
    return mel, pitch, instrument


def _fit(judge: Judge, mel: Tensor, label: Tensor, recipe: Recipe) -> None:
    """Cross-entropy with AdamW, the learning rate falling on a cosine; batches and noise from the recipe's seed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=recipe.rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(len(mel), generator=generator)])
        rows, order = order[: recipe.batch], order[recipe.batch :]
        noisy = mel[rows] + recipe.noise * torch.randn(mel[rows].shape, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(judge(noisy), label[rows]).backward()
        optimizer.step()
        schedule.step()
