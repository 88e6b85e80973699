"""Which of several lights people would prefer for a song: --input song.wav --lights one.npz other.npz.

The files are those that a generator's run writes (lights.npz: brightness, fps). Written are scores.csv, best first, and a picture; only
differences of rewards mean something: sigma(difference) is the probability that the one is preferred to the other.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.cqtml import api
from models.cqtml.config import FRAME_RATE, LIGHTS
from models.cqtml.showing import write_lights
from models.features import CQT
from models.inputs import read_recording
from pipeline.errors import UserError

LATE_BY = 1.0  # seconds by which lights may be shorter or longer than their song


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="FILE", help="the song, any sample rate and channels")
    parser.add_argument("--lights", type=Path, nargs="+", metavar="FILE", help="lights.npz of each output to compare")


def generate(module: Any, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write scores and a picture into ``out``; returns the files. UserError for inputs that cannot be used."""
    if args.input is None or not args.lights:
        raise UserError("say which lights to score for which song: --input song.wav --lights one.npz other.npz.")
    cqt = api.listen(read_recording(args.input, CQT.sample_rate, shortest=0.5)[0])
    lights = torch.stack([read_lights(path, cqt.shape[-1]) for path in args.lights])
    rewards = api.score(module, cqt, lights).tolist()
    ranked = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    out.mkdir(parents=True, exist_ok=True)
    table = out / "scores.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["lights", "reward"])
        rows.writerows([str(args.lights[i]), f"{rewards[i]:.4f}"] for i in ranked)
    shown = [(f"{args.lights[i]}: {rewards[i]:+.3f}", lights[i]) for i in ranked]
    return [table, write_lights(out / "scores.png", f"CQTML's reward: {args.input.name}", cqt, shown)]


def read_lights(path: Path, frames: int) -> Tensor:
    """Brightness (4, ``frames``) at the CQT's rate, out of a file that ``generate`` wrote. UserError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            curves, fps = np.asarray(file["brightness"], np.float32), float(file["fps"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is no lights.npz ({error}); write one with jobs/generate.py and a generator's run."
        ) from None
    if (
        curves.ndim != 2
        or len(curves) != LIGHTS
        or not np.isfinite(curves).all()
        or curves.min() < 0
        or curves.max() > 1
    ):
        raise UserError(f"{path} does not hold the brightness of {LIGHTS} lights, each from 0 to 1, over time.")
    apart = abs(curves.shape[1] / fps - frames / FRAME_RATE)
    if apart > LATE_BY:
        raise UserError(f"{path} and the song differ by {apart:.1f} s in length; give the lights of this song.")
    seconds = np.arange(frames) / FRAME_RATE
    return torch.from_numpy(
        np.stack([np.interp(seconds, np.arange(len(c)) / fps, c) for c in curves]).astype(np.float32)
    )
