"""How near the mix of a trained run is to the wanted one on held-out songs, beside what it has to beat and what can be reached at all.

``raw``: the tracks as they are, on both sides. ``matched``: the same as loud as the wanted mix. ``preset``: one setting for all songs, the
mean of consoles optimised for some training songs. ``model``: this run. ``ceiling``: a console optimised for each song, with its wanted mix
at hand. ``way`` is the share of the way from ``matched`` to ``ceiling`` in the multi-resolution STFT.

``own_reference`` and ``shuffled_reference`` are feature distances to the own reference, mixed after that and after another;
``shuffled_is_worse_by`` is their difference sample by sample: where its interval lies above 0, the reference is listened to.

Where the songs' true settings are known, ``error_...`` tells how far each knob is from them; ``typical`` is then the mean of the training
songs' true settings, the best that one setting for all songs can do.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.blocks.console.settings import Settings
from models.diff_mst import baselines, truth
from models.diff_mst.baselines import Recipe
from models.diff_mst.data import View
from models.diff_mst.objectives import FEATURES, feature_distances
from models.diff_mst.rendering import integrated_loudness
from models.diff_mst.train_module import TrainModule
from models.losses import multi_resolution_stft
from models.metrics import Figure, mean
from pipeline.engine import to_device
from pipeline.errors import UserError
from pipeline.manifest import Manifest, read_manifest
from pipeline.samples import SplitReader
from pipeline.train_module import Batch

BATCH = 4
Sample = dict[str, Any]
Measured = dict[str, list[float]]


def evaluate(
    module: TrainModule, data_folder: Path, out: Path, split: str = "test", recipe: Recipe | None = None
) -> dict[str, Figure | float]:
    """The figures by name. UserError where the split has fewer than two samples."""
    recipe = recipe or Recipe()
    module.eval()
    manifest, reference = read_manifest(data_folder), module.model_config.reference
    samples = read_samples(manifest, split, recipe.judged)
    if len(samples) < 2:
        raise UserError(f"{data_folder} has {len(samples)} samples in its split {split}; at least two are needed.")
    measured: Measured = {}
    if reference != "none":
        _shuffled(module, samples, measured)
    if reference != "other":
        training = read_samples(manifest, "train", None)
        presets = _song_consoles(module, training, recipe, recipe.songs)
        preset = baselines.averaged(module, list(presets.values()))
        _compared(module, samples, preset, recipe, measured, _typical(module, training))
    figures: dict[str, Figure | float] = {
        name: mean(torch.tensor(values)) for name, values in measured.items() if len(values) > 1
    }
    if "ceiling_stft" in measured:
        matched, model, ceiling = (float(np.mean(measured[f"{who}_stft"])) for who in ("matched", "model", "ceiling"))
        figures["way"] = (matched - model) / max(matched - ceiling, 1e-9)
    return figures


def read_samples(manifest: Manifest, split: str, most: int | None) -> list[Sample]:
    """Samples of a split with their JSON, spread evenly over it; only those that have a reference where that is marked."""
    with closing(SplitReader(manifest, split)) as reader:
        total = len(reader)
        chosen = range(total) if most is None or most >= total else np.linspace(0, total - 1, most).round().astype(int)
        found = [reader.sample(int(number)) for number in chosen]
    return [sample for sample in found if bool(sample.get("has_reference", True))]


def _batch(module: TrainModule, samples: list[Sample], others: list[Sample] | None = None) -> Batch:
    """Tensors of all arrays, on the module's device, positions counted from 0; ``others`` become the partners."""
    names = [name for name, value in samples[0].items() if isinstance(value, np.ndarray | np.generic)]
    batch = {name: torch.from_numpy(np.stack([np.asarray(sample[name]) for sample in samples])) for name in names}
    for name in names if others is not None else ():
        batch[f"other_{name}"] = torch.from_numpy(np.stack([np.asarray(sample[name]) for sample in others or []]))
    return to_device(batch | {"position": torch.arange(len(samples))}, next(module.parameters()).device)


def song_of(sample: Sample) -> str:
    return str(sample["song"] if "song" in sample else sample["meta"]["track"])


def partners(samples: list[Sample], apart: int = 1) -> list[Sample]:
    """For each sample one of another song: the first sample of the song that comes ``apart`` songs later, in a circle."""
    songs = _by_song(samples)
    order = {song: number for number, song in enumerate(songs)}
    firsts = [own[0] for own in songs.values()]
    return [firsts[(order[song_of(sample)] + apart) % len(firsts)] for sample in samples]


@torch.inference_mode()
def _shuffled(module: TrainModule, samples: list[Sample], measured: Measured) -> None:
    """Distances of the audio features to the own reference, each by its weight: mixed after that one, and after one that neither the own
    song nor the own reference is of; and, sample by sample, by how much that is worse."""
    others = partners(samples)
    strange = partners(samples, 2) if module.model_config.reference == "other" else others
    weights = module.model_config.weights
    for first in range(0, len(samples), BATCH):
        chosen = slice(first, first + BATCH)
        seen = module.view(_batch(module, samples[chosen], others[chosen]))
        wrong = module.view(_batch(module, strange[chosen], strange[chosen]))
        totals = {}
        for name, shown in (("own_reference", seen.reference), ("shuffled_reference", wrong.reference)):
            mix = module.mixed(replace(seen, reference=shown))[0].mix
            assert seen.reference is not None
            found = feature_distances(mix, seen.reference, module.sample_rate)
            totals[name] = torch.stack([getattr(weights, key) * value for key, value in found.items()]).sum(0)
            measured.setdefault(name, []).extend(totals[name].tolist())
        worse = totals["shuffled_reference"] - totals["own_reference"]
        measured.setdefault("shuffled_is_worse_by", []).extend(worse.tolist())


def _by_song(samples: list[Sample]) -> dict[str, list[Sample]]:
    songs: dict[str, list[Sample]] = {}
    for sample in samples:
        songs.setdefault(song_of(sample), []).append(sample)
    return songs


def _song_consoles(module: TrainModule, samples: list[Sample], recipe: Recipe, most: int | None) -> dict[str, Settings]:
    """A console optimised for each song, for the first ``most`` of them, begun at what the model says."""
    found = {}
    for song, own in list(_by_song(samples).items())[:most]:
        spread = np.linspace(0, len(own) - 1, min(recipe.segments, len(own))).round().astype(int)
        seen = module.view(_batch(module, [own[i] for i in spread]))
        with torch.no_grad():
            each = module.model.settings(seen.heard, seen.reference)
        start = baselines.averaged(module, [{n: v[i : i + 1] for n, v in each.items()} for i in range(len(spread))])
        found[song] = baselines.optimised(module, seen, start, recipe)
    return found


def _typical(module: TrainModule, samples: list[Sample]) -> truth.Stand | None:
    """Of all songs whose true settings are known; None where none is."""
    known = [own[0]["meta"].get("settings") for own in _by_song(samples).values()]
    stands = [truth.true_stand(settings, module.sample_rate) for settings in known if settings]
    return truth.typical(stands, module.layout) if stands else None


def _compared(
    module: TrainModule,
    samples: list[Sample],
    preset: Settings,
    recipe: Recipe,
    measured: Measured,
    typical: truth.Stand | None,
) -> None:
    """All that is held against each other, and the errors of the knobs, into ``measured``."""
    ceilings = _song_consoles(module, samples, recipe, None)
    for song, own in _by_song(samples).items():
        heard: list[Settings] = []
        for first in range(0, len(own), BATCH):
            with torch.inference_mode():
                seen = module.view(_batch(module, own[first : first + BATCH]))
                mixes = _mixes(module, seen, {"preset": preset, "ceiling": ceilings[song]})
                rendered, settings = module.mixed(seen)
                _measure(module, mixes | {"model": rendered.mix}, seen.like, measured)
            heard += [{n: v[i : i + 1] for n, v in settings.items()} for i in range(len(seen.tracks))]
        if known := own[0]["meta"].get("settings"):
            made = {"model": baselines.averaged(module, heard), "preset": preset, "ceiling": ceilings[song]}
            stands = {who: truth.stand(settings, module.layout) for who, settings in made.items()}
            _errors(stands | ({"typical": typical} if typical else {}), known, module, measured)


def _errors(stands: dict[str, truth.Stand], known: dict[str, Any], module: TrainModule, measured: Measured) -> None:
    true = truth.true_stand(known, module.sample_rate)
    for who, one in stands.items():
        for name, error in truth.parameter_errors(one, true, module.layout).items():
            measured.setdefault(f"error_{name}_{who}", []).append(error)


def _mixes(module: TrainModule, seen: View, consoles: dict[str, Settings]) -> dict[str, Tensor]:
    count = len(seen.tracks)
    found = {"raw": seen.tracks.sum(1, keepdim=True).expand(-1, 2, -1)}
    loud = [torch.tensor([integrated_loudness(w.numpy(), module.sample_rate) for w in waves]) for waves in (
        seen.tracks.sum(1, keepdim=True).cpu(), seen.like.cpu())]  # fmt: skip
    found["matched"] = baselines.loudness_matched(seen.tracks, *(x.to(seen.tracks) for x in loud))
    for who, settings in consoles.items():
        wide = {name: values.expand(count, -1, -1, -1) for name, values in settings.items()}
        found[who] = module.console(seen.tracks, wide).mix
    return found


def _measure(module: TrainModule, mixes: dict[str, Tensor], wanted: Tensor, measured: Measured) -> None:
    rate, target = module.sample_rate, module.judged(wanted)
    for who, wave in mixes.items():
        mix = module.judged(wave)
        found = {"stft": multi_resolution_stft(mix, target)} | feature_distances(mix, target, rate)
        found["lufs_db"] = torch.tensor(
            [
                abs(integrated_loudness(a.numpy(), rate) - integrated_loudness(b.numpy(), rate))
                for a, b in zip(mix.cpu(), target.cpu(), strict=True)
            ]
        )
        found["centroid_hz"] = (spectral_centroid(mix, rate) - spectral_centroid(target, rate)).abs()
        for name in ("stft", *FEATURES, "lufs_db", "centroid_hz"):
            measured.setdefault(f"{who}_{name}", []).extend(found[name].tolist())


def spectral_centroid(wave: Tensor, sample_rate: int) -> Tensor:
    """(B, 2, n) -> (B,) Hz: the mean frequency of the power spectrum of both channels."""
    power = torch.fft.rfft(wave).abs().square().sum(1)
    hertz = torch.fft.rfftfreq(wave.shape[-1], 1 / sample_rate).to(power)
    return (power * hertz).sum(-1) / power.sum(-1).clamp(min=1e-12)
