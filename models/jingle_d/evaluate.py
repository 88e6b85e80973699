"""The figures of a trained run on held-out pairs, each beside what needs no training.

    output      what the run makes of a pair
    input, target, average   the recordings themselves, and their mean: what the ancestor's losses ask for
    random      the run's cascade under masks of uniform noise
    crossover   what lies below 600 Hz of the target, and above it of the input: the fixed filter that a listener would try first

Intervals are over pairs: the segments of one pair count once, by their mean. The Fréchet distance is over log-mel statistics (mean and
deviation of 32 mel bands over half a second), from all inputs and targets; it is no FAD, which is over an embedding that was learned.
Recordings are heard through the codec, so what it loses is lost to all alike.

Shapes: B segments, C latent channels, L frames, n audio samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.features import MelSpec, log_mel
from models.inputs import held_out_split
from models.jingle_d.agreement import ONSET_HOP, ONSET_WINDOW, PARTS, agreement, heard
from models.jingle_d.data import FIELDS, onset_mel
from models.jingle_d.objectives import mask_terms
from models.jingle_d.sampling import Rendered, render
from models.jingle_d.showing import average, write_all
from models.jingle_d.train_module import TrainModule
from models.metrics import Figure, frechet_distance, mean
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from pipeline.samples import SplitReader

HELD_OUT = 512  # segments at most
CROSSOVER = 600.0  # Hz
STATISTICS = MelSpec(sample_rate=24000, bands=32, window=2048, hop=480)
STATISTICS_FRAMES = 25  # half a second
COMPARED = ("onset_correlation", "beat_correlation", "chroma_similarity", "chroma_correlation")

Figures = dict[str, Figure | float]


def evaluate(module: TrainModule, data_folder: Path, out: Path) -> Figures:
    """The figures by name; pictures and audio of one pair go to ``out``. UserError where there are not two pairs."""
    module.eval()
    names, given, target = held_out(module, data_folder)
    device = module.latent_mean.device
    given, target = (module.scale.apply(x.to(device)) for x in (given, target))
    made, random = render(module, given, target), render(module, given, target, random_masks=True)
    with torch.no_grad():
        first, second = (module.decode(x).cpu() for x in (given, target))
    rate = int(module.data["sample_rate"])
    mixes = {
        "output": made.wave.cpu(),
        "input": first,
        "target": second,
        "average": average(first, second),
        "random": random.wave.cpu(),
        "crossover": crossover(first, second, rate),
    }
    figures = compared(module, names, mixes)
    for name, rendered in (("output", made), ("random", random)):
        figures |= of_masks(name, names, rendered)
    shown = Rendered(made.wave[:1], made.input_mask[:1], made.target_mask[:1])
    write_all(out, "Jingle_D, a held-out pair", first[0], second[0], shown, rate)
    return figures


def held_out(module: TrainModule, data_folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """The pair that each segment is of, and both latents (B, C, L), in the order of the shards."""
    manifest = read_manifest(data_folder)
    split = held_out_split(manifest)
    with closing(SplitReader(manifest, split)) as reader:
        samples = [reader.sample(number) for number in range(min(HELD_OUT, manifest.samples(split)))]
    names = [sample["meta"]["input"]["file"] for sample in samples]
    if len(set(names)) < 2:
        raise UserError(
            f"the {split} split of {data_folder} has {len(set(names))} pairs; an interval needs 2 at least."
        )
    first, second = (torch.from_numpy(np.stack([sample[field] for sample in samples])) for field in FIELDS)
    return names, first, second


def compared(module: TrainModule, names: list[str], mixes: Mapping[str, Tensor]) -> Figures:
    """Agreement, loudness and distance of every mix (B, n); and by how much the output is above each of the others, pair by pair."""
    mel = onset_mel(module.data, ONSET_WINDOW, ONSET_HOP)
    given, target = mixes["input"], mixes["target"]
    features = {name: heard(mix, mel) for name, mix in mixes.items()}
    found = {name: agreement(mix, features["input"], features["target"]) for name, mix in features.items()}
    reference = torch.cat([statistics(given), statistics(target)])
    figures: Figures = {}
    for part in PARTS:
        figures |= {f"{name}_{part}": by_pair(names, each[part]) for name, each in found.items()}
    for part in COMPARED:
        for name in ("average", "random", "crossover"):
            figures[f"{part}_above_{name}"] = by_pair(names, found["output"][part] - found[name][part])
    for name, mix in mixes.items():
        figures[f"{name}_loudness_lufs"] = by_pair(names, loudness(mix, mel.sample_rate))
        figures[f"{name}_frechet"] = frechet_distance(reference, statistics(mix))
    return figures


def of_masks(name: str, names: list[str], made: Rendered) -> Figures:
    """Complementarity and what masks that never move would have of it; normalised, that is 0; and the masks' variance over time."""
    rows = zip(made.input_mask.cpu().split(1), made.target_mask.cpu().split(1), strict=True)
    terms = [mask_terms(first, second, 0.0) for first, second in rows]
    shares = [mask.cpu().mean((1, 2)) for mask in (made.input_mask, made.target_mask)]
    moving = torch.stack([mask.cpu().var(-1).mean(1) for mask in (made.input_mask, made.target_mask)]).mean(0)
    return {
        f"{name}_complementarity": by_pair(names, 1 - torch.stack([t["mask_overlap"] for t in terms])),
        f"{name}_complementarity_of_constants": by_pair(names, 1 - shares[0] * shares[1]),
        f"{name}_normalised_complementarity": by_pair(names, 1 - torch.stack([t["mask_disjoint"] for t in terms])),
        f"{name}_mask_variance": by_pair(names, moving),
    }


def by_pair(names: list[str], values: Tensor) -> Figure:
    """Mean and interval over pairs of what segments (B,) have."""
    pairs = sorted(set(names))
    return mean(torch.stack([values[[n == pair for n in names]].double().mean() for pair in pairs]))


def crossover(given: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """(B, n) each -> (B, n): the target below CROSSOVER, the input above it."""
    low = torch.fft.rfftfreq(given.shape[-1], 1 / sample_rate) < CROSSOVER
    return torch.fft.irfft(torch.where(low, torch.fft.rfft(target), torch.fft.rfft(given)), n=given.shape[-1])


def statistics(waves: Tensor) -> Tensor:
    """(B, n) -> (windows, 64)."""
    mel = log_mel(waves, STATISTICS)
    windows = mel.unfold(-1, STATISTICS_FRAMES, STATISTICS_FRAMES).transpose(1, 2).flatten(0, 1)
    return torch.cat([windows.mean(-1), windows.std(-1)], dim=-1)


def loudness(waves: Tensor, sample_rate: int) -> Tensor:
    """(B, n) -> (B,) LUFS, integrated (ITU-R BS.1770-4), by pyloudnorm; not below the gate, -70."""
    import pyloudnorm

    meter = pyloudnorm.Meter(sample_rate)
    found = [meter.integrated_loudness(wave.double().numpy()) for wave in waves]
    return torch.tensor(found).clamp_min(-70.0)
