"""The paper's figures for a trained LDM case (Section 5.3), on held-out mixtures, by judges of our own (``judges.py``).

The pitch latents of a mixture's sources are rotated, timbre latents stay; all sources are rendered together ("set") and each by itself
("single"). Each new source should play the melody it was given (share of its frames in which a note is due) on its own instrument.
Beside these: the transcription, the error of what is rendered with nothing moved, and for each instrument the Fréchet distance between
the instrument judge's features of new sources and of clean ones. That is no FAD: the features are our judge's, not VGGish's.

Shapes: B mixtures, N sources, M = 1 + N members, F mel bands, T mel frames, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from models.codecs.base import MelCodec
from models.dismix.judges import rotation
from models.dismix.ldm import data as facts
from models.dismix.ldm.judges import Judges, clean_sources, trained_judges
from models.dismix.ldm.rendering import CHUNK, codec_of, encode, render, to_mel
from models.dismix.ldm.training import LdmModule
from models.metrics import Figure, accuracy, frechet_distance, mean
from pipeline.engine import to_device
from pipeline.loader import Evaluation
from pipeline.manifest import read_manifest
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch

JUDGED = 1000  # mixtures at most
CROPS = 2  # places at most that are looked at in a sample longer than the model's window
DECIBEL = 20 / math.log(10)  # of one unit of log-mel
RENDERINGS = ("set", "single")


@torch.no_grad()
def evaluate(module: LdmModule, data_folder: Path, out: Path, split: str = "test") -> dict[str, Figure | float]:
    """The figures by name, shares in [0, 1] and errors in decibels; the judges go to ``out``."""
    manifest, codec, device = read_manifest(data_folder), codec_of(module), module.mean.device
    judges = trained_judges(module, codec, manifest, out).to(device)
    module.eval()
    collected: dict[str, list[Tensor]] = {}
    for crop in range(min(CROPS, int(module.data["frames"]) // module.sizes.frames)):
        for batch in Evaluation(manifest, split, batch_size=CHUNK, limit=-(-JUDGED // CHUNK)):
            on_device = to_device(batch, device)
            for name, values in judged(module, codec, judges, on_device, crop):
                collected.setdefault(name, []).append(values.cpu())
    measured = {name: torch.cat(parts) for name, parts in collected.items()}
    clean = _clean(module, codec, judges, manifest.folder, split)
    figures: dict[str, Figure | float] = {
        name: _figure(values) for name, values in measured.items() if not name.startswith("_")
    }
    figures |= {name: _figure(values) for name, values in clean.items() if not name.startswith("_")}
    return figures | _distances(measured, clean, module.data["instruments"])


def judged(module: LdmModule, codec: MelCodec, judges: Judges, batch: Batch, crop: int) -> Iterator[tuple[str, Tensor]]:
    """What is measured on one batch: (name, one value a source or mixture); names with _ are not figures yet."""
    random, position = KeyedRandom(0), batch["position"]
    seen = facts.view(batch, module.sizes, random, f"evaluate/crop/{crop}")
    wanted, instrument = module.classes(seen.pitch), batch["instrument"]
    latents = encode(module, codec, seen.mixture, seen.queries)
    sources = wanted.shape[1]
    noise = random.normal(
        f"dismix/evaluate/noise/{crop}", position, (1 + sources, *latents.pitch.shape[2:]), wanted.device
    )
    origin = rotation(position, sources).to(wanted.device)
    moved = latents.pitch.take_along_dim(origin[..., None, None, None], dim=1)
    due = wanted.take_along_dim(origin[..., None], dim=1)
    for name in RENDERINGS:
        new = to_mel(module, codec, render(module, latents.timbre, moved, noise, alone=name == "single"))[:, 1:]
        heard, player, features = judges.verdict(module.standardise(new))
        yield f"{name}_pitch", on_notes(module, heard, due)
        yield f"{name}_instrument", (player == instrument).flatten()
        yield f"_{name}_features", features.flatten(0, 1)
    yield "_instrument", instrument.flatten()
    yield "transcription", on_notes(module, latents.pitch_logits.argmax(-1), wanted)

    stored = torch.cat([seen.mixture_latent[:, None], seen.sources_latent], dim=1)
    clean = to_mel(module, codec, module.members_scale(1 + sources).apply(stored))
    rebuilt = to_mel(module, codec, render(module, latents.timbre, latents.pitch, noise))
    error = (rebuilt - clean).square().mean((-1, -2)).sqrt() * DECIBEL
    yield "mixture_error_db", error[:, 0]
    yield "source_error_db", error[:, 1:].flatten()


def on_notes(module: LdmModule, heard: Tensor, due: Tensor) -> Tensor:
    """Share of the frames in which a note is due that have it, for each source (..., T) that has any; one-dimensional."""
    note = due != module.sizes.pitch_classes - 1
    count = note.sum(-1)
    share = ((heard == due) & note).sum(-1) / count.clamp_min(1)
    return share[count > 0]


def _clean(module: LdmModule, codec: MelCodec, judges: Judges, data_folder: Path, split: str) -> dict[str, Tensor]:
    """What the judges say of clean sources, and their features of them."""
    parts: dict[str, list[Tensor]] = {}
    for mel, pitch, instrument in clean_sources(module, codec, read_manifest(data_folder), split, JUDGED * 4):
        heard, player, features = (x[0].cpu() for x in judges.verdict(mel[None].to(module.mean.device)))
        found = {
            "judge_pitch_on_clean": on_notes(module, heard, pitch),
            "judge_instrument_on_clean": player == instrument,
            "_features": features,
            "_instrument": instrument,
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in parts.items()}


def _figure(values: Tensor) -> Figure:
    return accuracy(values) if values.dtype == torch.bool else mean(values)


def _distances(measured: dict[str, Tensor], clean: dict[str, Tensor], names: list[str]) -> dict[str, float]:
    """Fréchet distances by instrument and their mean, of both renderings; an instrument needs two sources to have one."""
    found: dict[str, float] = {}
    for rendering in RENDERINGS:
        distances = []
        for number, name in enumerate(names):
            new = measured[f"_{rendering}_features"][measured["_instrument"] == number]
            real = clean["_features"][clean["_instrument"] == number]
            if min(len(new), len(real)) < 2:
                continue
            distances.append(frechet_distance(new, real))
            found[f"{rendering}_judge_frechet_{name.replace(' ', '_')}"] = distances[-1]
        if distances:
            found[f"{rendering}_judge_frechet"] = sum(distances) / len(distances)
    return found
