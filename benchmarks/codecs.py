"""What a codec loses on prepared data, and how fast it is: the round trip of real samples, with latents as the shards keep them.

    python benchmarks/codecs.py FOLDER CODEC [--split valid] [--samples 24]

FOLDER holds prepared shards of audio (or of mels), such as data/slakh_stems_demo. A waveform is compared by its signal-to-noise ratio and,
as phase says little about sound, by the mean difference of log-mels (64 bands up to half the sample rate, floor 1e-5). Latents go
through float16, as they are stored. Silent tracks are left out. Speeds are of this machine: compare them within one run.
It looks at prepared data, so it is no part of ``make bench``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from data_prep.latents import FULL_SCALE, LatentStage, latent_stage
from models.codecs import load_codec
from models.codecs.base import Codec
from models.features import AUDIOLDM2, log_mel
from pipeline.errors import run_command
from pipeline.manifest import read_manifest
from pipeline.samples import SplitReader

SILENT = 1e-4  # RMS
DECIBEL = 20 / math.log(10)  # of a difference of natural logarithms of magnitudes


def fields(folder: Path, stage: LatentStage, split: str, samples: int) -> Iterator[tuple[str, Tensor]]:
    """What would be encoded: a name and (tracks, n) waveforms or (tracks, bands, frames) mels of one sample."""
    reader = SplitReader(read_manifest(folder), split)
    for number in range(min(samples, len(reader))):
        sample = reader.sample(number)
        arrays = {name: value for name, value in sample.items() if isinstance(value, np.ndarray)}
        for name in stage.encoded({name: (value.dtype, value.shape) for name, value in arrays.items()}):
            values = torch.from_numpy(arrays[name]).float()
            last = 2 if stage.mels else 1
            yield name, values.reshape(-1, *values.shape[-last:])


def round_trip(codec: Codec, stage: LatentStage, values: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """What went in, what came out (waveforms or mels), and the seconds that encoding and decoding took."""
    encode = codec.encode_mel if stage.mels else codec.encode  # type: ignore[attr-defined]
    decode = codec.decode_mel if stage.mels else codec.decode  # type: ignore[attr-defined]
    before = values if stage.mels else values / FULL_SCALE
    began = time.perf_counter()
    latent = encode(before).half()
    between = time.perf_counter()
    with torch.no_grad():
        after = decode(latent.float())
    ended = time.perf_counter()
    length = min(before.shape[-1], after.shape[-1])
    return before[..., :length], after[..., :length].cpu(), between - began, ended - between


def differences(before: Tensor, after: Tensor, mels: bool, sample_rate: int) -> list[tuple[float, float]]:
    """Of every track: SNR in dB (nan for mels), mean absolute difference of log-mels in dB (both nan where it is silent)."""
    rows = []
    spec = replace(AUDIOLDM2, sample_rate=sample_rate, f_max=sample_rate / 2)
    for was, now in zip(before, after, strict=True):
        if mels:
            rows.append((math.nan, DECIBEL * float((was - now).abs().mean())))
        elif was.square().mean().sqrt() > SILENT:
            snr = 10 * torch.log10(was.square().sum() / (was - now).square().sum().clamp(min=1e-20))
            rows.append((float(snr), DECIBEL * float((log_mel(was, spec) - log_mel(now, spec)).abs().mean())))
        else:
            rows.append((math.nan, math.nan))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="The round trip of a codec on prepared data.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="prepared shards of audio or mels")
    parser.add_argument("codec", metavar="CODEC")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--samples", type=int, default=24)
    args = parser.parse_args()
    stage = latent_stage(args.folder, args.codec)
    codec = load_codec(args.codec, sample_rate=stage.of.sample_rate)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    encoding = decoding = audio = 0.0
    for name, values in fields(args.folder, stage, args.split, args.samples):
        before, after, encoded, decoded = round_trip(codec, stage, values)
        for track, row in enumerate(differences(before, after, stage.mels, codec.sample_rate)):
            found.setdefault((name, track), []).append(row)
        encoding, decoding = encoding + encoded, decoding + decoded
        samples = values.shape[-1] * (AUDIOLDM2.hop if stage.mels else 1)
        audio += len(values) * samples / codec.sample_rate
    table = Table(
        "field",
        "track",
        "SNR, dB",
        "log-mel, dB",
        title=f"{args.codec} on {args.folder.name}, {args.split}: median (worst)",
    )
    for (name, track), rows in found.items():
        snr, mel = np.array(rows).T
        shown = "" if np.isnan(snr).all() else f"{np.nanmedian(snr):.1f} ({np.nanmin(snr):.1f})"
        table.add_row(name, str(track), shown, f"{np.nanmedian(mel):.2f} ({np.nanmax(mel):.2f})")
    console = Console()
    console.print(table)
    console.print(
        f"{audio:.0f} s of audio; encoding {audio / encoding:.0f} times real time, decoding {audio / decoding:.0f}"
    )


if __name__ == "__main__":
    run_command(main)
