"""How fast the console renders on one core, as multiples of real time: one voice, one voice with everything, four tracks.

    python benchmarks/console.py [--seconds 60]

Still settings, settings that move once in 2.7 s, and a training step of 1.7 s with gradients. CPU time, so other work does not count.
Last, how far a mix in single precision, which is what it is computed in, lies from the same in double precision.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
from rich.console import Console as Paper
from rich.table import Table

from models.blocks.console.console import Console
from models.blocks.console.layout import Layout
from models.blocks.console.settings import start_settings
from pipeline.errors import run_command

RATE = 48000
SPACING, TRAINING = 131072, 81920  # samples
LAYOUTS = {
    "one voice (diff_mst_demo)": Layout(
        sample_rate=RATE, fader=False, high_pass=True, reverb_mix=False, master=False, softest_knee=0
    ),
    "one voice, de-esser and echoes (diff_mst_vocal)": Layout(
        sample_rate=RATE,
        fader=False,
        high_pass=True,
        de_esser=True,
        echo=True,
        reverb_mix=False,
        master=False,
        softest_knee=0,
    ),
    "four tracks and master (diff_mst)": Layout(sample_rate=RATE, tracks=4),
}


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(layout: Layout, seconds: int) -> tuple[float, float, float]:
    """Real-time factors: still, moving, and with gradients."""
    console, settings = Console(layout), start_settings(layout)
    wave = 0.1 * torch.randn(1, layout.tracks, seconds * RATE, generator=torch.Generator().manual_seed(0))
    count = 1 + wave.shape[-1] // SPACING
    moving = {n: (v if n == "bus" else v.expand(-1, -1, count, -1)) for n, v in settings.items()}
    with torch.inference_mode():
        console(wave[..., :RATE], settings)  # the noise of the reverb is drawn
        still = cpu_seconds(lambda: console(wave, settings))
        moved = cpu_seconds(lambda: console(wave, moving, SPACING))
    for values in settings.values():
        values.requires_grad_()
    trained = cpu_seconds(lambda: console(wave[..., :TRAINING], settings).mix.square().mean().backward())
    return seconds / still, seconds / moved, TRAINING / RATE / trained


def single_precision_error(layout: Layout) -> float:
    """Decibels by which the largest difference of 4 s of noise lies below the mix's largest sample."""
    console, settings = Console(layout), start_settings(layout)
    wave = 0.1 * torch.randn(1, layout.tracks, 4 * RATE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        single = console(wave, settings).mix
        exact = console(wave.double(), {name: values.double() for name, values in settings.items()}).mix
    return 20 * float(((single - exact).abs().max() / exact.abs().max()).log10())


def main() -> None:
    parser = argparse.ArgumentParser(description="The console's speed on one core.")
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("console", "still", "moving", "with gradients", "single precision, dB")
    table = Table(*columns, title=f"times real time, {args.seconds} s, one core")
    for name, layout in LAYOUTS.items():
        factors = (f"{factor:.0f}" for factor in measure(layout, args.seconds))
        table.add_row(name, *factors, f"{single_precision_error(layout):.0f}")
    Paper().print(table)
    Paper().print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    run_command(main)
