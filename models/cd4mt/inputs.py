"""What generation is given: stems out of recordings or of a held-out sample, as latents, and which of them are to be made.

Shapes: S stems, C latent channels, L frames, n audio samples.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.cd4mt import data as facts
from models.cd4mt.sampling import Known
from models.cd4mt.train_module import TrainModule
from models.codecs import codec_of
from models.inputs import held_out_sample, read_recording
from pipeline.errors import UserError, nearest


@dataclass(frozen=True)
class Task:
    """``known``: what is given, (1, S, C, L) of deviation sigma_data; ``make``: names of the stems that are written."""

    known: Known
    given: list[str]
    make: list[str]
    samples: int  # n, of what is written

    @property
    def frames(self) -> int:
        return self.known.latents.shape[-1]


def task(module: TrainModule, args: argparse.Namespace, data_folder: Path) -> Task:
    """What ``args`` ask for. UserError for names, files, numbers that cannot be."""
    if args.given and args.sample is not None:
        raise UserError("--given takes your own recordings and --sample a held-out one; use one of them.")
    if args.seconds is not None and (args.given or args.sample is not None):
        raise UserError(
            "--seconds says how long something new is; what goes with a recording is as long as that: leave it out."
        )
    make = [_stem(module, name, "--make") for name in args.make or []]
    if args.sample is not None and not make:
        raise UserError(f"--sample gives all stems: say which to --make of {', '.join(module.stems)}.")
    if args.sample is not None:
        latents, given = _from_sample(module, args.sample, data_folder, make)
        samples = int(module.data["segment"])
    elif args.given:
        latents, given, samples = _from_recordings(module, args.given)
    else:
        latents, given, samples = _nothing(module, args.seconds), [], 0
    make = make or [name for name in module.stems if name not in given]
    if both := [name for name in make if name in given]:
        raise UserError(f"{both[0]} is given and to be made; leave it out of --given or of --make.")
    if not make:
        raise UserError("all stems are given; leave out one that is to be made.")
    mask = (
        torch.tensor([name in given for name in module.stems])
        .reshape(1, -1, 1, 1)
        .expand(*latents.shape[:2], 1, latents.shape[-1])
    )
    device = module.latent_mean.device
    return Task(Known(latents.to(device), mask.to(device)), given, make, samples)


def _stem(module: TrainModule, name: str, option: str) -> str:
    if name not in module.stems:
        raise UserError(
            f"{option} {name}: there is no such stem.{nearest(name, module.stems)} There are: {', '.join(module.stems)}."
        )
    return name


def _nothing(module: TrainModule, seconds: float | None) -> Tensor:
    """Zeros (1, S, C, L) of ``seconds``, at least of one window."""
    frames = module.frames
    if seconds is not None:
        if not 0 < seconds <= 3600:
            raise UserError(f"--seconds {seconds:g}: give more than 0 and at most 3600.")
        latent = module.data["latent"]
        frames = max(frames, -(-round(seconds * latent["sample_rate"]) // int(latent["hop"])))
    stems, channels = module.latent_mean.shape[:2]
    return torch.zeros(1, stems, channels, frames)


def _from_sample(module: TrainModule, number: int, folder: Path, make: list[str]) -> tuple[Tensor, list[str]]:
    """Stems of a held-out sample that are not to be made."""
    _, sample = held_out_sample(number, folder)
    stored = torch.from_numpy(np.asarray(sample[facts.FIELD], np.float32))[None]
    given = [name for name in module.stems if name not in make]
    if not given:
        raise UserError("--make names all stems, so --sample gives nothing; leave --sample out to make all four.")
    return module.clean({facts.FIELD: stored}), given


def _from_recordings(module: TrainModule, files: list[str]) -> tuple[Tensor, list[str], int]:
    """Files called after their stems (drums.wav), or STEM=FILE; the shorter ones are filled with silence."""
    rate, waves = int(module.data["latent"]["sample_rate"]), {}
    for text in files:
        name, equals, path = text.partition("=")
        file = Path(path) if equals else Path(text)
        name = _stem(module, name if equals else file.stem, "--given")
        if name in waves:
            raise UserError(f"--given names {name} twice; give each stem once.")
        waves[name] = torch.from_numpy(read_recording(file, rate)[0])
    codec = codec_of(module.data, module.latent_mean.device.type)
    length = max(len(wave) for wave in waves.values())
    beyond = (
        int(module.data["segment"]) - facts.frames(module.data) * codec.hop
    )  # what a codec takes before its first frame
    frames = max(module.frames, -(-(length - beyond) // codec.hop))
    filled = torch.zeros(len(module.stems), frames * codec.hop + beyond)
    for name, wave in waves.items():
        filled[module.stems.index(name), : len(wave)] = wave
    return module.clean({facts.FIELD: codec.encode(filled)[None]}), list(waves), length
