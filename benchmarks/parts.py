"""Parts of the systems beside what one would take instead: our CQT beside librosa's, CD4MT's sampling beside bare forward passes.

    python -m benchmarks.parts [--rounds 5] [--seconds 10] [--clock cpu]

The CQT is CQTML's: 84 bins, a frame each 64 samples at 22.05 kHz. That both compute the same is a test (tests/data_prep/test_features.py).
Sampling: the time of ``draw`` over that of as many calls of the network as the method makes by its definition; the rest is noise, sums and
Python. One thread; the contenders take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import librosa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import CLOCKS, in_pairs
from benchmarks.rows import Row, amount, hand_over, ratios
from jobs.configs import load_named
from jobs.describe import build
from models.features import CQT, cqt
from pipeline.errors import run_command

TRACKS = 4  # drawn at once
# Config, steps, and calls of the network: Heun's method asks twice a step, but once at the last; a consistency model once a level.
SAMPLERS = (("cd4mt_demo_edm", 8, 15), ("cd4mt_demo", 2, 2))


def transform(seconds: int, rounds: int, clock: Callable[[], float]) -> Row:
    wave = 0.1 * torch.randn(seconds * CQT.sample_rate, generator=torch.Generator().manual_seed(0))
    samples, options = wave.numpy(), {"hop_length": CQT.hop, "n_bins": CQT.bins, "fmin": CQT.f_min}
    ours, theirs = in_pairs(
        lambda: cqt(wave),
        lambda: librosa.cqt(samples, sr=CQT.sample_rate, bins_per_octave=CQT.bins_per_octave, **options),
        rounds,
        clock,
    )
    return Row(f"CQT of {seconds} s", amount(ours, "s"), f"librosa: {amount(theirs, 's')}", ratios(ours, theirs))


def sampling(name: str, steps: int, calls: int, rounds: int, clock: Callable[[], float]) -> Row:
    torch.manual_seed(0)
    module = build(load_named(name), None).eval()
    numbers, frames = torch.arange(TRACKS), module.frames  # type: ignore[operator]
    latent, level = module.draw(numbers, frames, steps), torch.ones(TRACKS)  # type: ignore[operator]

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(calls):
            module.denoiser(latent, level)  # type: ignore[operator]

    ours, theirs = in_pairs(lambda: module.draw(numbers, frames, steps), forwards, rounds, clock)  # type: ignore[operator]
    bare = f"{calls} forward passes: {amount(theirs, 's')}"
    return Row(f"sampling, {name}, {steps} steps", amount(ours, "s"), bare, ratios(ours, theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of the waveform whose CQT is taken")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this process alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = CLOCKS[args.clock]
    rows = [transform(args.seconds, args.rounds, clock)]
    rows += [sampling(*words, args.rounds, clock) for words in SAMPLERS]
    table = Table(
        "what", "ours", "instead", "ours / instead", title=f"{args.rounds} rounds, {args.clock} time, one thread"
    )
    for row in rows:
        table.add_row(row.what, row.ours, row.theirs, row.shown)
    Console(width=140).print(table)
    hand_over("parts", rows)


if __name__ == "__main__":
    run_command(main)
