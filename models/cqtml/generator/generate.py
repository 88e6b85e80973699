"""Let four lights follow a song: --input song.wav, or a segment of the held-out split (--sample 0).

Written are the brightness of each light over time as lights.npz and lights.csv, the same as values for a lighting desk (dmx.csv: Art-Net
universe, channel, 0 to 255), a picture, and a page that plays the song with its lights in any browser (lights.html). The most likely
output, the same in every run; with --temperature outputs are drawn, as many as --samples says, each with a number in its files' names.

--pairs N draws N pairs of outputs of the songs it was trained on into the run's own folder, for people to compare.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from models.cqtml import api
from models.cqtml.config import FRAME_RATE
from models.cqtml.page import write_page
from models.cqtml.showing import write_lights
from models.cqtml.tables import at_rate, check_place, write_tables
from models.features import CQT
from models.inputs import held_out_sample, read_recording
from pipeline.errors import UserError

SHORTEST = 0.5  # seconds
PICTURED = 4  # outputs at most in the picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--input", type=Path, metavar="FILE", help="a song, any length, sample rate and channels")
    what.add_argument("--sample", type=int, metavar="K", help="segment K of the held-out split (the default: 0)")
    what.add_argument(
        "--pairs", type=int, metavar="N", help="draw N pairs for people to compare, into the run's folder"
    )
    parser.add_argument("--fps", type=float, default=40.0, help="frames a second of the tables (default: 40)")
    parser.add_argument("--universe", type=int, default=0, metavar="U", help="Art-Net universe, from 0 (default: 0)")
    parser.add_argument(
        "--channel", type=int, default=1, metavar="C", help="DMX channel of light 1, from 1 (default: 1)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="draw outputs, at this temperature; 1: as trained"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="S", help="with --temperature: so many (default: 1)")
    parser.add_argument("--dropout", action="store_true", help="with --temperature: keep dropout on")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of what is drawn (default: 0)")


def generate(module: Any, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write tables, pictures and the music into ``out``; returns the files. UserError for inputs that cannot be used."""
    check_place(args.fps, args.universe, args.channel)
    title, wave, cqt = _given(args, data_folder)
    outputs = _outputs(module, cqt, args)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "music.wav"]
    soundfile.write(written[0], wave, CQT.sample_rate, subtype="PCM_16")
    for number, lights in enumerate(outputs):
        suffix = f"_{number + 1}" if len(outputs) > 1 else ""
        curves = at_rate(lights.cpu().numpy(), args.fps)
        written += write_tables(out, suffix, curves, args.fps, args.universe, args.channel)
        written.append(write_page(out, written[0], lights.cpu().numpy(), FRAME_RATE, title, f"lights{suffix}"))
    shown = "most likely" if args.temperature is None else f"drawn at temperature {args.temperature:g}"
    rows = [(f"{shown}, {i + 1} of {len(outputs)}", lights) for i, lights in enumerate(outputs[:PICTURED])]
    written.append(write_lights(out / "lights.png", f"CQTML: {title}", cqt, rows))
    return written


def _given(args: argparse.Namespace, data_folder: Path) -> tuple[str, np.ndarray, Tensor]:
    """What it is, its waveform (n,) at 22,050 Hz, and its CQT (2, 84, T)."""
    if args.input is not None:
        wave = read_recording(args.input, CQT.sample_rate, shortest=SHORTEST)[0]
        return args.input.name, wave, api.listen(wave)
    number = args.sample or 0
    _, sample = held_out_sample(number, data_folder)
    return f"held-out segment {number}", sample["audio"] / np.float32(32768), torch.from_numpy(sample["cqt"])


def _outputs(module: Any, cqt: Tensor, args: argparse.Namespace) -> Tensor:
    """(S, 4, T)."""
    if args.samples < 1:
        raise UserError(f"--samples {args.samples} is not a number of outputs; give 1 or more.")
    if args.temperature is None:
        if args.samples > 1 or args.dropout:
            raise UserError("--samples and --dropout draw outputs: say at which --temperature, for example 1.")
        return api.generate_deterministic(module, cqt)[None]
    if args.temperature <= 0:
        raise UserError(
            f"--temperature {args.temperature:g}: give more than 0, or leave it out for the most likely output."
        )
    return api.generate_stochastic(module, cqt, args.temperature, args.samples, args.seed, args.dropout)
