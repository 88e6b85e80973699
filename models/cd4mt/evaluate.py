"""The figures of a trained run on held-out songs: distances of distributions, coherence of stems, what a draw costs.

The Fréchet distance is over log-mel statistics (``statistics``). The reference is held-out latents through the codec, so the distance
is the generator's alone. What the codec costs stands beside it (``codec_...``), and so does the distance of the training songs
(``training_songs``), which is what a perfect memory would reach. Two baselines: noise of the right scale as latents, and the mean of each
stem over the training songs, the same in every frame.

Shapes: B samples, S stems, C latent channels, L frames, n audio samples.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.cd4mt import data as facts
from models.cd4mt import sampling
from models.cd4mt.coherence import audible, imputation, together
from models.cd4mt.showing import to_audio, write_comparison
from models.cd4mt.statistics import Comparison, Figures
from models.cd4mt.train_module import TrainModule
from pipeline.errors import UserError
from pipeline.loader import Evaluation
from pipeline.manifest import MANIFEST, Manifest, read_manifest
from pipeline.rng import KeyedRandom
from pipeline.samples import SplitReader

SEEDS = 3  # draws of everything, for the spread
DRAWS = 64  # a seed
HELD_OUT = 512  # samples of a split at most
SEEN = 64  # of the training split, to be heard
ITERATIONS = 16  # of Griffin-Lim, where the codec is one of mels: a quarter of the usual, for data and draws alike
BATCH = 16
IMPUTED = 64  # songs at most of which each stem is made anew
FULL_SCALE = 32768.0  # of int16


@torch.no_grad()
def evaluate(module: TrainModule, data_folder: Path, out: Path, split: str = "test") -> Figures:
    """The figures by name; a picture of one draw of every way to sample goes to ``out``. UserError where the split is too small."""
    module.eval()
    songs = _songs(module, data_folder, split, HELD_OUT)
    if len(songs) < 2:
        raise UserError(f"the {split} split of {data_folder} has {len(songs)} samples; distances need 2 at least.")
    real, rate = audio(module, songs), int(module.data["sample_rate"])
    compare = Comparison(module.stems, rate, real)
    figures: Figures = {}
    shown = {"data": real[0]}
    for name, steps in ways(module).items():
        draws, seconds = zip(*(drawn(module, steps, seed) for seed in range(SEEDS)), strict=True)
        figures |= compare.seeds(name, draws) | together(name, torch.cat(draws), module.stems, rate)
        figures[f"{name}_evaluations"] = evaluations(module, steps)
        figures[f"{name}_seconds_a_sample"] = sum(seconds) / len(seconds)
        shown[name] = draws[0][0]
    figures |= compare.seeds("noise", [audio(module, _noise(module, seed)) for seed in range(SEEDS)])
    learned = _songs(module, data_folder, "train", HELD_OUT)
    still = learned.mean((0, 3), keepdim=True).expand(2, -1, -1, module.frames)
    figures |= compare.one("mean_stem", audio(module, still))
    figures |= compare.one("training_songs", audio(module, learned[:SEEN]))
    figures |= together("data", real, module.stems, rate) | codec_cost(module, data_folder, split)
    figures |= imputation(real[:IMPUTED], imputed(module, songs[:IMPUTED]), module.stems, rate)
    write_comparison(out, "CD4MT, data and draws", shown, module.stems, rate)
    return figures


def ways(module: TrainModule) -> dict[str, int]:
    """How a run samples, and in how many steps."""
    if module.model_config.objective == "edm":
        return {"diffusion": sampling.DIFFUSION_STEPS}
    return {"one_step": 1, "two_steps": 2}


def evaluations(module: TrainModule, steps: int) -> int:
    """Of the network, for one draw."""
    return 2 * steps - 1 if module.model_config.objective == "edm" else steps


def audio(module: TrainModule, latents: Tensor) -> Tensor:
    """(B, S, C, L) -> (B, S, n) on the CPU."""
    return torch.cat([to_audio(module, part, ITERATIONS).cpu() for part in latents.split(BATCH)])


def _songs(module: TrainModule, data_folder: Path, split: str, limit: int) -> Tensor:
    """A split's latents (B, S, C, L) of deviation sigma_data, in pieces as long as a draw is."""
    pieces = []
    for batch in Evaluation(read_manifest(data_folder), split, batch_size=BATCH, limit=limit // BATCH):
        pieces += [part for part in module.clean(batch).split(module.frames, -1) if part.shape[-1] == module.frames]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def drawn(module: TrainModule, steps: int, seed: int) -> tuple[Tensor, float]:
    """(DRAWS, S, n), and the seconds that a draw's latents took on this machine, in batches of BATCH."""
    waves, spent = [], 0.0
    for first in range(0, DRAWS, BATCH):
        begin = time.perf_counter()
        latents = module.draw(torch.arange(first, first + BATCH), module.frames, steps, seed=seed)
        latents.sum().item()  # a GPU has then done it
        spent += time.perf_counter() - begin
        waves.append(audio(module, latents))
    return torch.cat(waves), spent / DRAWS


def imputed(module: TrainModule, songs: Tensor) -> Tensor:
    """(B, S, C, L) -> (B, S, n): each stem as it is made to the other three."""
    steps, made = None if module.model_config.objective == "edm" else sampling.GIVEN_STEPS, songs.clone()
    for stem in range(songs.shape[1]):
        mask = torch.ones(*songs.shape[:2], 1, songs.shape[-1], dtype=torch.bool, device=songs.device)
        mask[:, stem] = False
        new = module.draw(torch.arange(len(songs)), songs.shape[-1], steps, sampling.Known(songs, mask))
        made[:, stem] = new[:, stem]
    return audio(module, made)


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
    decoded = torch.cat([to_audio(module, module.clean({facts.FIELD: part})).cpu() for part in latents.split(BATCH)])
    originals = originals[..., : decoded.shape[-1]]
    noise = (originals - decoded).square().sum(-1).clamp_min(1e-12)
    ratios = 10 * (originals.square().sum(-1) / noise).log10()
    compare = Comparison(module.stems, int(module.data["sample_rate"]), originals)
    return compare.one("codec", decoded) | {"codec_median_snr_db": float(ratios[audible(originals)].median())}


def _by_number(manifest: Manifest, split: str, field: str, count: int) -> Tensor:
    """(count, ...) float32 in the order of the shards, which the latents share with what was encoded; a pass's order may differ."""
    with closing(SplitReader(manifest, split)) as reader:
        return torch.stack([torch.from_numpy(np.asarray(reader.sample(i)[field], np.float32)) for i in range(count)])
