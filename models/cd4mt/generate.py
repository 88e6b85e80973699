"""Make four stems out of nothing, some stems to go with others, or a piece of any length.

    generate.py RUN                                                    four stems, as long as the run was trained on
    generate.py RUN --seconds 60 --steps 2 --draw 7                    longer: window after window, each going on from the last
    generate.py RUN --given drums.wav bass.wav --make guitar piano     imputation: files are called after their stems, or STEM=FILE
    generate.py RUN --given piano=take3.flac                           accompaniment: all stems that are not given
    generate.py RUN --sample 3 --make drums                            the same with stems of held-out sample 3
    generate.py RUN --separate mix.wav                                 a mixture's stems, which add up to it

Written are NAME.wav for every stem that was made, mix.wav with what was given, and waveforms and spectrograms as pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.cd4mt.external import load_external
from models.cd4mt.inputs import Task, task
from models.cd4mt.sampling import GIVEN_STEPS, Known
from models.cd4mt.separation import STEPS, mixture_of, separate
from models.cd4mt.showing import to_audio, write_comparison, write_stems
from models.cd4mt.train_module import TrainModule
from models.windows import window_starts
from pipeline.errors import UserError

MOST_STEPS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--given", nargs="+", metavar="FILE", help="recordings of stems: drums.wav or drums=FILE")
    parser.add_argument(
        "--sample", type=int, metavar="K", help="take the given stems of sample K of the held-out split"
    )
    parser.add_argument("--make", nargs="+", metavar="STEM", help="the stems to make; default: all that are not given")
    parser.add_argument(
        "--seconds", type=float, metavar="T", help="how long, where nothing is given; default: one window"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N",
        help="noise levels of a consistency model (default 2, or 8 where stems are given), Heun steps of diffusion "
        "(default 35); 18 levels of either with --separate",
    )  # fmt: skip
    parser.add_argument("--separate", metavar="FILE", help="a recording of a mixture, to be taken apart (codec meldct)")
    parser.add_argument("--draw", type=int, default=0, metavar="SEED", help="another draw (default: 0)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of the same network that others trained")


def generate(module: TrainModule, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write audio and pictures into ``out``; returns the files. UserError for inputs that cannot be used."""
    if args.steps is not None and not 1 <= args.steps <= MOST_STEPS:
        raise UserError(f"--steps {args.steps}: give 1..{MOST_STEPS}.")
    if args.separate is not None:
        return _separated(module, args, out)
    wanted = task(module, args, data_folder)
    _ready(module, args)
    steps = args.steps
    if steps is None and wanted.given and module.model_config.objective != "edm":
        steps = GIVEN_STEPS
    latents = continued(module, wanted, steps, args.draw)
    waves = to_audio(module, latents)[0]
    if wanted.samples:
        waves = waves[..., : wanted.samples]
    return _written(module, wanted, waves, out)


def _ready(module: TrainModule, args: argparse.Namespace) -> None:
    if args.weights is not None:
        load_external(module, args.weights)
    module.eval()


def _separated(module: TrainModule, args: argparse.Namespace, out: Path) -> list[Path]:
    mixture = mixture_of(module, args)
    _ready(module, args)
    stems = separate(module, mixture, args.steps or STEPS, args.draw)
    out.mkdir(parents=True, exist_ok=True)
    rate = int(module.data["sample_rate"])
    files = write_stems(out, dict(zip(module.stems, stems, strict=True)), rate)
    shown = {"": torch.cat([mixture[None], stems]).cpu()}
    return files + write_comparison(out, "CD4MT, taken apart", shown, ["mixture", *module.stems], rate)


def continued(module: TrainModule, wanted: Task, steps: int | None, seed: int) -> Tensor:
    """(1, S, C, L): windows that overlap by half, each of which is given what the one before it made of its first half."""
    window, frames = module.frames, wanted.frames
    made, known, done = wanted.known.latents.clone(), wanted.known.mask, 0
    for number, start in enumerate(window_starts(frames, window)):
        mask = known[..., start : start + window] | (torch.arange(start, start + window, device=known.device) < done)
        part = made[..., start : start + window]
        given = Known(part, mask) if bool(mask.any()) else None
        made[..., start : start + window] = module.draw(torch.tensor([number]), window, steps, given, seed)
        done = start + window
    return made


def _written(module: TrainModule, wanted: Task, waves: Tensor, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    rate = int(module.data["sample_rate"])
    stems = {name: waves[i] for i, name in enumerate(module.stems) if name in wanted.given or name in wanted.make}
    files = write_stems(out, stems, rate, wanted.make)
    names = [f"{name}, given" if name in wanted.given else name for name in stems]
    return files + write_comparison(out, "CD4MT", {"": torch.stack(list(stems.values()))}, names, rate)
