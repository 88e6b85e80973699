"""The judges of the simple case: a pitch and an instrument classifier for clips of one note.

Shapes: K clips, C mel bands, T frames.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from models.dismix.judges import Judge, Recipe, fit, kept
from pipeline.loader import Evaluation
from pipeline.manifest import Manifest


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
    """Judges for this data, trained in seconds on the CPU unless ``folder`` has them."""
    recipe, info = recipe or Recipe(), manifest.info
    pitches = info["pitch_high"] - info["pitch_low"] + 1

    def learn(judges: Judges) -> None:
        mel, pitch, instrument = clean_sources(manifest, "valid", recipe.clips)
        mel = (mel - info["mean"]) / info["std"]
        fit(judges.pitch, mel, pitch - info["pitch_low"], recipe)
        fit(judges.instrument, mel, instrument, recipe)

    def build() -> Judges:
        return Judges(info["mel"]["bands"], pitches, len(info["instruments"]), recipe)

    return kept(folder, [manifest.identity], recipe, build, learn)


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
