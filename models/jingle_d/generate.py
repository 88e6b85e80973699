"""Mix two recordings: the rhythm of one, harmony and melody of the other.

    generate.py RUN --input drums.wav --target song.flac           any length, sample rate and channels
    generate.py RUN --sample 3                                     a held-out pair
    generate.py RUN --sample 3 --shuffle-targets --draw 7          its input with the target of another pair

The output is as long as the input; a shorter target begins again. Written are output.wav, average.wav (the plain average of the two, to
compare with), the spectrograms of all four, and masks.png: what of each recording is heard where.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.codecs import codec_of
from models.inputs import held_out_sample, held_out_split, read_recording
from models.jingle_d.data import INPUT, TARGET
from models.jingle_d.sampling import Rendered, as_long_as, render
from models.jingle_d.showing import write_all
from models.jingle_d.train_module import TrainModule
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.rng import key

SHORTEST = 0.5  # seconds of a recording


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="FILE", help="the recording that gives the rhythm")
    parser.add_argument("--target", type=Path, metavar="FILE", help="the recording that gives harmony and melody")
    parser.add_argument("--sample", type=int, metavar="K", help="take both from pair K of the held-out split")
    parser.add_argument(
        "--shuffle-targets", action="store_true", help="with --sample: take the target of another pair, drawn by --draw"
    )
    parser.add_argument("--draw", type=int, default=0, metavar="SEED", help="another draw of that pair (default: 0)")


def generate(module: TrainModule, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write audio and pictures into ``out``; returns the files. UserError for inputs that cannot be used."""
    given, target, made = mixed(module, args, data_folder)
    return write_all(out, "Jingle_D", given, target, made, int(module.data["sample_rate"]))


def mixed(module: TrainModule, args: argparse.Namespace, data_folder: Path) -> tuple[Tensor, Tensor, Rendered]:
    """Both recordings (n) as the codec leaves them, the target as long as the input, and what is made of them."""
    module.eval()
    latents = _held_out(module, args, data_folder) if args.sample is not None else _recordings(module, args)
    given, target = (module.scale.apply(x.to(module.latent_mean.device)) for x in latents)
    target = as_long_as(target, given.shape[-1])
    with torch.no_grad():
        recordings = [module.decode(x)[0].cpu() for x in (given, target)]
    return recordings[0], recordings[1], render(module, given, target)


def _recordings(module: TrainModule, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Latents (1, C, L) of the user's own files."""
    for option, other in (("input", "target"), ("target", "input")):
        if getattr(args, option) is None:
            asked = f"--{other} alone is no pair" if getattr(args, other) else "nothing to mix"
            raise UserError(f"{asked}: give --input FILE and --target FILE, or --sample K.")
    if args.shuffle_targets:
        raise UserError("--shuffle-targets draws another held-out pair's target: give --sample K, not files.")
    codec = codec_of(module.data, module.latent_mean.device.type)
    waves = [read_recording(path, codec.sample_rate, shortest=SHORTEST) for path in (args.input, args.target)]
    with torch.no_grad():
        first, second = (codec.encode(torch.from_numpy(wave)) for wave in waves)
    return first, second


def _held_out(module: TrainModule, args: argparse.Namespace, data_folder: Path) -> tuple[Tensor, Tensor]:
    """Latents (1, C, L) of a held-out pair."""
    if args.input is not None or args.target is not None:
        raise UserError("--sample takes both recordings from the held-out split: leave out --input and --target.")
    if not (data_folder / MANIFEST).is_file():
        raise UserError(f"--sample needs the run's data, and {data_folder} is not there; give its root with --data.")
    split = held_out_split(read_manifest(data_folder))
    manifest, own = held_out_sample(args.sample, data_folder, split=split)
    other = own
    if args.shuffle_targets:
        total = manifest.samples(split)
        if total < 2:
            raise UserError("--shuffle-targets needs another pair, and the held-out split has but one.")
        number = (args.sample + 1 + key(args.draw, "jingle_d/shuffle", args.sample) % (total - 1)) % total
        other = held_out_sample(number, data_folder, split=split)[1]
    return torch.from_numpy(own[INPUT])[None], torch.from_numpy(other[TARGET])[None]
