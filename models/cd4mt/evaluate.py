"""The figures of a trained run on held-out songs: distances of distributions, coherence of stems, what a draw costs.

The Fréchet distance is over log-mel statistics (``statistics``). The reference is held-out latents through the codec, so the distance
is the generator's alone. What the codec costs stands beside it (``codec_cost``), and so does the distance of the training songs
(``training_songs``), as many of them at a time as there are draws: what a perfect memory would reach, for the distance of a few draws
is not 0 even where their distribution is the right one. Two baselines, of the training songs' latents: noise of each channel's
mean and deviation (``noise``), and the means alone, the same in every frame (``mean_stem``).

Shapes: B samples, S stems, C latent channels, L frames, n audio samples.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from models.cd4mt import sampling
from models.cd4mt.codec_cost import codec_cost, recordings
from models.cd4mt.coherence import imputation, together
from models.cd4mt.separation import separation
from models.cd4mt.showing import to_audio, write_comparison
from models.cd4mt.statistics import Comparison, Figures, spectra
from models.cd4mt.train_module import TrainModule
from pipeline.errors import UserError
from pipeline.loader import Evaluation
from pipeline.manifest import read_manifest
from pipeline.rng import KeyedRandom

SEEDS = 10  # draws of everything, for the spread
DRAWS = 48  # a seed
HELD_OUT = 512  # samples of a split at most
BATCH = 16
HEARD = 24  # draws, and songs, that are made audio of: what their stems agree in is measured there
ITERATIONS = 8  # of Griffin-Lim there, where the codec is one of mels; fewer than usual, for data and draws alike


@torch.no_grad()
def evaluate(module: TrainModule, data_folder: Path, out: Path, split: str = "test") -> Figures:
    """The figures by name; a picture of one draw of every way to sample goes to ``out``. UserError where the split is too small."""
    module.eval()
    songs, learned = (songs_of(module, data_folder, name) for name in (split, "train"))
    if len(songs) < 2:
        raise UserError(f"the {split} split of {data_folder} has {len(songs)} samples; distances need 2 at least.")
    compare = Comparison(module.stems, spectra(module, songs))
    real, rate = audio(module, songs[:HEARD]), int(module.data["sample_rate"])
    figures: Figures = {}
    shown = {"data": real[0]}
    for name, steps in ways(module).items():
        draws, seconds = zip(*(drawn(module, steps, seed) for seed in range(SEEDS)), strict=True)
        heard = audio(module, draws[0][:HEARD])
        figures |= compare.seeds(name, [spectra(module, draw) for draw in draws])
        figures |= together(name, heard, module.stems, rate)
        figures[f"{name}_evaluations"] = evaluations(module, steps)
        figures[f"{name}_seconds_a_sample"] = sum(seconds) / len(seconds)
        shown[name] = heard[0]
    figures |= baselines(module, compare, learned)
    figures |= together("data", real, module.stems, rate)
    figures |= imputation(real, imputed(module, songs[:HEARD]), module.stems, rate)
    figures |= codec_cost(module, data_folder, split)
    figures |= separation(module, recordings(module, data_folder, split, HEARD))
    write_comparison(out, "CD4MT, data and draws", shown, module.stems, rate)
    return figures


def baselines(module: TrainModule, compare: Comparison, learned: Tensor) -> Figures:
    """Distances of what needs no model: noise, the mean of each stem, and the training songs themselves."""
    centre, deviation = learned.mean((0, 3), keepdim=True), learned.std((0, 3), keepdim=True)
    shape, numbers = (*learned.shape[1:3], module.frames), torch.arange(DRAWS)
    noises = (KeyedRandom(seed).normal("cd4mt/evaluate/noise", numbers, shape) for seed in range(SEEDS))
    memory = [torch.randperm(len(learned), generator=torch.Generator().manual_seed(i))[:DRAWS] for i in range(SEEDS)]
    noise = [spectra(module, centre + deviation * one.to(learned)) for one in noises]
    still = spectra(module, centre.expand(2, -1, -1, module.frames))
    return (
        compare.seeds("noise", noise)
        | compare.one("mean_stem", still)
        | compare.seeds("training_songs", [spectra(module, learned[some]) for some in memory])
    )


def ways(module: TrainModule) -> dict[str, int]:
    """How a run samples, and in how many steps."""
    if module.model_config.objective == "edm":
        return {"diffusion": sampling.DIFFUSION_STEPS}
    return {"one_step": 1, "two_steps": 2}


def evaluations(module: TrainModule, steps: int) -> int:
    """Of the network, for one draw."""
    return 2 * steps - 1 if module.model_config.objective == "edm" else steps


def drawn(module: TrainModule, steps: int, seed: int) -> tuple[Tensor, float]:
    """(DRAWS, S, C, L), and the seconds that a draw took on this machine, in batches of BATCH."""
    draws, begin = [], time.perf_counter()
    for numbers in torch.arange(DRAWS).split(BATCH):
        draws.append(module.draw(numbers, module.frames, steps, seed=seed))
        draws[-1].sum().item()  # a GPU has then done it
    return torch.cat(draws), (time.perf_counter() - begin) / DRAWS


def imputed(module: TrainModule, songs: Tensor) -> Tensor:
    """(B, S, C, L) -> (B, S, n): each stem as it is made to the other three."""
    steps, made = sampling.GIVEN_STEPS, songs.clone()
    for stem in range(songs.shape[1]):
        mask = torch.ones(*songs.shape[:2], 1, songs.shape[-1], dtype=torch.bool, device=songs.device)
        mask[:, stem] = False
        new = module.draw(torch.arange(len(songs)), songs.shape[-1], steps, sampling.Known(songs, mask))
        made[:, stem] = new[:, stem]
    return audio(module, made)


def audio(module: TrainModule, latents: Tensor) -> Tensor:
    """(B, S, C, L) -> (B, S, n) on the CPU."""
    return torch.cat([to_audio(module, part, ITERATIONS).cpu() for part in latents.split(BATCH)])


def songs_of(module: TrainModule, data_folder: Path, split: str) -> Tensor:
    """A split's latents (B, S, C, L) of deviation sigma_data, in pieces as long as a draw is."""
    pieces = []
    for batch in Evaluation(read_manifest(data_folder), split, batch_size=BATCH, limit=HELD_OUT // BATCH):
        pieces += [part for part in module.clean(batch).split(module.frames, -1) if part.shape[-1] == module.frames]
    return torch.cat(pieces) if pieces else torch.zeros(0)
