"""The figures of a trained run on held-out songs: distances of distributions, coherence of stems, what a draw costs.

The Fréchet distance is over log-mel statistics: mean and deviation of 32 mel bands (to 8 kHz) over 0.37 s, of each stem and of the
mixture. That is no FAD: FAD is over an embedding that was learned. The reference is held-out latents through the codec, so the distance
is the generator's alone. What the codec costs stands beside it (``codec_...``), and so does the distance of the training songs
(``training_songs``), which is what a perfect memory would reach. Two baselines: noise of the right scale as latents, and the mean of each
stem.

Shapes: B samples, S stems, C latent channels, L frames, n audio samples, W windows, D = 64 statistics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.cd4mt import data as facts
from models.cd4mt import sampling
from models.cd4mt.coherence import audible, imputation, together
from models.cd4mt.showing import to_audio, write_comparison
from models.cd4mt.train_module import TrainModule
from models.features import MelSpec, log_mel
from models.metrics import Figure, frechet_distance, mean
from pipeline.errors import UserError
from pipeline.loader import Evaluation
from pipeline.manifest import MANIFEST, Manifest, read_manifest
from pipeline.rng import KeyedRandom
from pipeline.samples import SplitReader

STATISTICS = MelSpec(sample_rate=44100, bands=32, window=2048, hop=512)
WINDOW = 16384  # samples, 0.37 s
SEEDS = 3  # draws of everything, for the spread
DRAWS = 64  # a seed
HELD_OUT = 512  # samples of a split at most
BATCH = 16
IMPUTED = 32  # songs at most of which each stem is made anew
FULL_SCALE = 32768.0  # of int16

Figures = dict[str, Figure | float]


@torch.no_grad()
def evaluate(module: TrainModule, data_folder: Path, out: Path, split: str = "test") -> Figures:
    """The figures by name; a picture of one draw of every way to sample goes to ``out``. UserError where the split is too small."""
    module.eval()
    real = held_out(module, data_folder, split)
    if len(real) < 2:
        raise UserError(f"the {split} split of {data_folder} has {len(real)} samples; distances need 2 at least.")
    reference = statistics(real)
    figures: Figures = {}
    shown = {"data": real[0]}
    for name, steps in ways(module).items():
        draws, seconds = zip(*(drawn(module, steps, seed) for seed in range(SEEDS)), strict=True)
        figures |= spread(name, [distances(module, reference, statistics(wave)) for wave in draws])
        figures |= together(name, torch.cat(draws), module.stems)
        figures[f"{name}_evaluations"] = evaluations(module, steps)
        figures[f"{name}_seconds_a_sample"] = sum(seconds) / len(seconds)
        shown[name] = draws[0][0]
    noise = [to_audio(module, _noise(module, seed)) for seed in range(SEEDS)]
    figures |= spread("noise", [distances(module, reference, statistics(wave)) for wave in noise])
    still = to_audio(module, torch.zeros_like(_noise(module, 0)))
    figures |= named("mean_stem", distances(module, reference, statistics(still)))
    seen = statistics(held_out(module, data_folder, "train"))
    figures |= named("training_songs", distances(module, reference, seen))
    figures |= together("data", real, module.stems) | codec_cost(module, data_folder, split)
    songs = torch.cat([part[..., : module.frames] for part in _latents(module, data_folder, split)])
    figures |= imputation(module, songs[:IMPUTED])
    write_comparison(out, "CD4MT, data and draws", shown, module.stems, int(module.data["sample_rate"]))
    return figures


def ways(module: TrainModule) -> dict[str, int]:
    """How a run samples, and in how many steps."""
    if module.model_config.objective == "edm":
        return {"diffusion": sampling.DIFFUSION_STEPS}
    return {"one_step": 1, "two_steps": 2}


def evaluations(module: TrainModule, steps: int) -> int:
    """Of the network, for one draw."""
    return 2 * steps - 1 if module.model_config.objective == "edm" else steps


def held_out(module: TrainModule, data_folder: Path, split: str) -> Tensor:
    """(B, S, n): a split's latents through the codec, in pieces as long as a draw is."""
    pieces = []
    for latents in _latents(module, data_folder, split):
        pieces += [part for part in latents.split(module.frames, dim=-1) if part.shape[-1] == module.frames]
    return torch.cat([to_audio(module, piece).cpu() for piece in pieces]) if pieces else torch.zeros(0)


def _latents(module: TrainModule, data_folder: Path, split: str) -> Iterator[Tensor]:
    """(B, S, C, L) of deviation sigma_data."""
    for batch in Evaluation(read_manifest(data_folder), split, batch_size=BATCH, limit=HELD_OUT // BATCH):
        yield module.scale.apply(batch[facts.FIELD].to(module.latent_mean.device))


def statistics(waves: Tensor) -> Tensor:
    """(B, S, n) -> (S + 1, W, D): of the stems and of their sum, over windows of 0.37 s (or all of it, where it is shorter)."""
    size = min(WINDOW, waves.shape[-1])
    windows = torch.cat([waves, waves.sum(1, keepdim=True)], dim=1).unfold(-1, size, size)  # (B, S + 1, k, size)
    found = []
    for part in windows.split(BATCH):
        mel = log_mel(part, STATISTICS)
        found.append(torch.cat([mel.mean(-1), mel.std(-1)], dim=-1))
    return torch.cat(found).transpose(0, 1).flatten(1, 2)


def distances(module: TrainModule, reference: Tensor, found: Tensor) -> dict[str, float]:
    """Fréchet distances by stem, their mean ("stems") and the mixture's ("total")."""
    by_track = [frechet_distance(one, other) for one, other in zip(reference, found, strict=True)]
    each = dict(zip(module.stems, by_track, strict=False))
    return {"total": by_track[-1], "stems": sum(each.values()) / len(each)} | each


def named(name: str, found: dict[str, float]) -> Figures:
    return {f"{name}_frechet_{track}": value for track, value in found.items()}


def spread(name: str, seeds: list[dict[str, float]]) -> Figures:
    """Mean over seeds, with its interval."""
    return {f"{name}_frechet_{track}": mean(torch.tensor([seed[track] for seed in seeds])) for track in seeds[0]}


def drawn(module: TrainModule, steps: int, seed: int) -> tuple[Tensor, float]:
    """(DRAWS, S, n), and the seconds that a draw's latents took on this machine, in batches of BATCH."""
    waves, spent = [], 0.0
    for first in range(0, DRAWS, BATCH):
        begin = time.perf_counter()
        latents = module.draw(torch.arange(first, first + BATCH), module.frames, steps, seed=seed)
        latents.sum().item()  # a GPU has then done it
        spent += time.perf_counter() - begin
        waves.append(to_audio(module, latents).cpu())
    return torch.cat(waves), spent / DRAWS


def _noise(module: TrainModule, seed: int) -> Tensor:
    shape = (*module.latent_mean.shape[:2], module.frames)
    random = KeyedRandom(seed).normal("cd4mt/evaluate/noise", torch.arange(DRAWS), shape)
    return module.model_config.sigma_data * random.to(module.latent_mean.device)


def codec_cost(module: TrainModule, data_folder: Path, split: str) -> Figures:
    """Signal-to-noise ratio and distance of the codec's round trip, where the shards that were encoded lie beside the latents."""
    folder = data_folder.with_name(data_folder.name.removesuffix(f"-{module.data['latent']['codec']}"))
    if folder == data_folder or not (folder / MANIFEST).is_file():
        return {}
    manifest = read_manifest(folder)
    if manifest.identity != module.data["latent"]["source"]:
        return {}
    count = min(HELD_OUT, manifest.samples(split))
    originals = _by_number(manifest, split, "stems", count) / FULL_SCALE
    latents = _by_number(read_manifest(data_folder), split, facts.FIELD, count).to(module.latent_mean.device)
    decoded = torch.cat([to_audio(module, module.scale.apply(part)).cpu() for part in latents.split(BATCH)])
    originals = originals[..., : decoded.shape[-1]]
    noise = (originals - decoded).square().sum(-1).clamp_min(1e-12)
    ratios = 10 * (originals.square().sum(-1) / noise).log10()
    figures = named("codec", distances(module, statistics(originals), statistics(decoded)))
    return figures | {"codec_median_snr_db": float(ratios[audible(originals)].median())}


def _by_number(manifest: Manifest, split: str, field: str, count: int) -> Tensor:
    """(count, ...) float32 in the order of the shards, which the latents share with what was encoded; a pass's order may differ."""
    with closing(SplitReader(manifest, split)) as reader:
        return torch.stack([torch.from_numpy(np.asarray(reader.sample(i)[field], np.float32)) for i in range(count)])
