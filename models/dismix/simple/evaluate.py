"""The paper's figures for a trained simple case (Section 4.2), on held-out mixtures, with 95 % intervals.

"Single": the pitch latents of a mixture's sources are permuted, timbre latents stay, each new source is decoded by itself
and judged: its pitch should be that of the source the pitch came from, its instrument the one the timbre came from.
"Mixture": the new source latents are summed and decoded into a new mixture; as in the paper this is encoded again with the
original queries, its sources are decoded, and these are judged. The permutation moves every source (a rotation drawn by
the sample's position), the timbre latent is the posterior's mean, the query is the first clip of each source.

Shapes: B mixtures, N sources, C mel bands, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from models.dismix.judges import rotation
from models.dismix.simple.judges import Judges, clean_sources, trained_judges
from models.dismix.simple.training import SimpleModule
from models.metrics import Figure, accuracy, mean
from pipeline.engine import to_device
from pipeline.loader import Evaluation
from pipeline.manifest import read_manifest
from pipeline.train_module import Batch

BATCH = 128
JUDGED = 4000  # mixtures of the split at most
DECIBEL = 20 / math.log(10)  # of one unit of log-mel, which is the natural logarithm of a magnitude


@torch.no_grad()
def evaluate(module: SimpleModule, data_folder: Path, out: Path, split: str = "test") -> dict[str, Figure]:
    """The figures by name, shares in [0, 1] and errors in decibels; judges and a picture of the timbre space go to ``out``."""
    from models.dismix.simple.showing import show_timbre_space

    manifest = read_manifest(data_folder)
    with torch.enable_grad():
        judges = trained_judges(manifest, out)
    module.eval()
    device = next(module.parameters()).device
    judges.to(device)
    collected: dict[str, list[Tensor]] = {}
    for batch in Evaluation(manifest, split, batch_size=BATCH, limit=-(-JUDGED // BATCH)):
        for name, values in judged(module, judges, to_device(batch, device)):
            collected.setdefault(name, []).append(values.cpu())
    measured = {name: torch.cat(parts) for name, parts in collected.items()}
    show_timbre_space(measured.pop("timbre"), measured.pop("instrument"), manifest.info["instruments"], out)
    mel, pitch, instrument = clean_sources(manifest, split, JUDGED * manifest.info["sources"])
    heard, seen = judges.verdict(module.standardise(mel.to(device)))
    measured["judge_pitch_on_clean"] = heard.cpu() == pitch - module.pitch_low
    measured["judge_instrument_on_clean"] = seen.cpu() == instrument
    return {name: accuracy(v) if v.dtype == torch.bool else mean(v) for name, v in measured.items()}


def judged(module: SimpleModule, judges: Judges, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """What is measured on one batch: (name, one value a source or mixture), bool where it is right or wrong."""
    model, frames = module.model, batch["mixture"].shape[-1]
    mixture, sources = module.standardise(batch["mixture"]), module.standardise(batch["sources"])
    queries = module.standardise(batch["queries"][:, :, 0])
    pitch, instrument = batch["pitch"] - module.pitch_low, batch["instrument"]
    latents = model.encode(mixture, queries)

    origin = rotation(batch["position"], pitch.shape[1]).to(pitch.device)
    moved = latents.pitch.take_along_dim(origin[..., None], dim=1)
    wanted = pitch.take_along_dim(origin, dim=1)
    single, new_mixture = model.render(latents.timbre, moved, frames)
    heard, seen = judges.verdict(single)
    yield "single_pitch", heard == wanted
    yield "single_instrument", seen == instrument

    again = model.encode(new_mixture, queries)
    heard, seen = judges.verdict(model.render(again.timbre, again.pitch, frames)[0])
    yield "mixture_pitch", heard == wanted
    yield "mixture_instrument", seen == instrument

    rebuilt, rebuilt_mixture = model.render(latents.timbre, latents.pitch, frames)
    yield "transcription", latents.pitch_logits.argmax(-1) == pitch
    yield "source_error_db", _error(module, rebuilt, sources)
    yield "mixture_error_db", _error(module, rebuilt_mixture, mixture)
    yield "timbre", latents.timbre.flatten(0, 1)
    yield "instrument", instrument.flatten()


def _error(module: SimpleModule, rendered: Tensor, target: Tensor) -> Tensor:
    """Root mean square difference of two standardised log-mels (..., C, T) in decibels, (...)."""
    return (rendered - target).square().mean((-1, -2)).sqrt() * module.std * DECIBEL
