"""How fast the console renders on one core: as multiples of real time, and beside what one would take instead.

    python -m benchmarks.console [--seconds 20] [--rounds 5]

First ours alone: one voice, one voice with everything, four tracks; still settings, settings that move once in 2.7 s, and a training step
of 1.7 s with gradients; and how far a mix in single precision, which is what it is computed in, lies from the same in double precision.

Then beside others, taking turns: the equaliser beside scipy's recursion, which passes no gradients; and a voice's strip beside
dasp-pytorch, the paper's console (the extra ``bench``; ``make bench`` installs it), at the same settings. Theirs convolves the reverb in
time and smooths the compressor by attack alone. CPU time, so other work does not count.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from rich.console import Console as Paper
from rich.table import Table
from scipy.signal import sosfilt
from torch import Tensor

from benchmarks.measure import CLOCKS, Work, in_pairs
from benchmarks.rows import Row, amount, hand_over, ratios
from models.blocks.console import convolution, filters, space
from models.blocks.console.console import RINGING, Console, Rendered, equaliser_sections
from models.blocks.console.layout import REVERB_BANDS, Layout
from models.blocks.console.settings import Settings, named, start_settings
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


# What dasp-pytorch has, too: six bands, a compressor, a reverb of twelve bands; at these settings, others where they start.
STRIP = Layout(sample_rate=RATE, fader=False, master=False)
DECAY, SHARE = 0.8, 0.3  # s, and how much of what goes through the reverb
SET = {
    "low_shelf_gain": 3.0, "peak_1_gain": -4.0, "peak_2_gain": 3.0, "peak_3_gain": -2.0, "peak_4_gain": 2.0, "high_shelf_gain": 4.0,
    "reverb_send": 0.0, "reverb_mix": SHARE, **{f"reverb_decay_{band}": DECAY for band in range(1, REVERB_BANDS + 1)},
}  # fmt: skip
THEIRS = {"low_shelf": "low_shelf", **{f"peak_{i + 1}": f"band{i}" for i in range(4)}, "high_shelf": "high_shelf"}
BESIDE = 48000  # samples; their reverb takes seconds for one of sound
MISSING = "dasp-pytorch is not installed, so its rows are left out: pip install -c constraints.txt -e '.[bench]'"


def strip_settings() -> Settings:
    settings = start_settings(STRIP)
    for name, section in STRIP.sections.items():
        for i, knob in enumerate(section):
            settings[name][..., i] = SET.get(knob.name, float(knob.start))
    return settings


def noise(samples: int) -> Tensor:
    """(1, 1, n)."""
    return 0.1 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(0))


def equaliser_row(seconds: int, rounds: int) -> Row:
    """Forwards, beside a recursion that passes no gradients."""
    sections, wave = (
        equaliser_sections(named(strip_settings()["track"], STRIP.track), RATE)[:, :, 0],
        noise(seconds * RATE),
    )
    total, other, apart = (
        sections[0, 0].double().unflatten(-1, (2, 3)).unbind(-1)
    )  # b0 + b1 + b2, b0 - b1 + b2, b0 - b2
    outer = (total + other) / 4
    recursion = torch.stack([outer + apart / 2, (total - other) / 2, outer - apart / 2], -1)
    recursion = (recursion / recursion[:, 1:, :1]).flatten(1).numpy()
    samples = wave.numpy()

    def ours() -> Tensor:
        return convolution.convolve(wave, lambda _, size: filters.sampled(sections, size), round(RINGING * RATE))

    with torch.inference_mode():
        error = float((ours() - torch.from_numpy(sosfilt(recursion, samples))).abs().max() / wave.abs().max())
        mine, theirs = in_pairs(ours, lambda: sosfilt(recursion, samples), rounds, CLOCKS["cpu"])
    said = f"scipy.signal.sosfilt, no gradients: {amount(theirs, 's')}; apart {20 * math.log10(error):.0f} dB"
    return Row(f"console: equaliser of 6 bands, {seconds} s", amount(mine, "s"), said, ratios(mine, theirs))


Chain = Callable[[Tensor], Tensor]


def our_chains(settings: Settings) -> tuple[Chain, Chain]:
    """Waves (1, 1, n) through equaliser and compressor, and through all of the strip."""
    console, strip = Console(STRIP), named(settings["track"], STRIP.track)
    return lambda wave: console._strip(wave, strip, None, Rendered(wave)), lambda wave: console(wave, settings).mix


def their_chains(settings: Settings) -> tuple[Chain, Chain]:
    """The same in dasp-pytorch. Its decay of a band is a number: over the reverb's taps the level falls by 10 of it and 1 nepers."""
    from dasp_pytorch import compressor, noise_shaped_reverberation, parametric_eq

    knobs = named(settings["track"], STRIP.track)
    words = {"gain_db": "gain", "cutoff_freq": "frequency", "q_factor": "q"}
    bands = {f"{b}_{word}": knobs[f"{a}_{w}"][0, 0] for a, b in THEIRS.items() for word, w in words.items()}
    dynamics = {
        "threshold_db": knobs["threshold"], "ratio": knobs["ratio"], "attack_ms": knobs["attack"], "release_ms": knobs["release"],
        "knee_db": knobs["knee"], "makeup_gain_db": knobs["make_up"],
    }  # fmt: skip
    taps = space.reverb_taps(RATE)
    decay = (3 * math.log(10) * taps / RATE / DECAY - 1) / 10
    room = {
        f"band{i}_{what}": torch.tensor([value])
        for i in range(REVERB_BANDS)
        for what, value in (("gain", 1.0), ("decay", decay))
    }

    def dry(wave: Tensor) -> Tensor:
        found: Tensor = compressor(parametric_eq(wave, RATE, **bands), RATE, **dynamics)
        return found

    def wet(wave: Tensor) -> Tensor:
        found: Tensor = noise_shaped_reverberation(dry(wave), RATE, **room, mix=torch.tensor([SHARE]), num_samples=taps)
        return found

    return dry, wet


def beside_dasp(rounds: int) -> list[Row]:
    """Equaliser and compressor, then with the reverb, of which one round is enough; forwards, and with the settings' gradients."""
    ours, theirs = strip_settings(), strip_settings()
    for settings in (ours, theirs):
        settings["track"].requires_grad_()
    wave, rows = noise(BESIDE), []
    parts = (("equaliser, compressor", rounds, 1), ("equaliser, compressor, reverb", 1, 0))
    for (what, count, warm), mine, other in zip(parts, our_chains(ours), their_chains(theirs), strict=True):
        for gradients in (False, True):
            times = in_pairs(
                rendering(mine, wave, gradients), rendering(other, wave, gradients), count, CLOCKS["cpu"], warm
            )
            said = "console, with gradients" if gradients else "console"
            rows.append(
                Row(
                    f"{said}: {what}, 1 s",
                    amount(times[0], "s"),
                    f"dasp-pytorch: {amount(times[1], 's')}",
                    ratios(*times),
                    at_most=1.0,
                )
            )
    return rows


def rendering(chain: Chain, wave: Tensor, gradients: bool) -> Work:
    def forwards() -> None:
        with torch.no_grad():
            chain(wave)

    return (lambda: chain(wave).square().mean().backward()) if gradients else forwards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("console", "still", "moving", "with gradients", "single precision, dB")
    table = Table(*columns, title=f"times real time, {args.seconds} s, one core")
    for name, layout in LAYOUTS.items():
        factors = (f"{factor:.0f}" for factor in measure(layout, args.seconds))
        table.add_row(name, *factors, f"{single_precision_error(layout):.0f}")
    paper = Paper(width=150)
    paper.print(table)
    paper.print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    rows = [equaliser_row(args.seconds, args.rounds)]
    if find_spec("dasp_pytorch") is None:
        paper.print(MISSING, markup=False)
    else:
        rows += beside_dasp(args.rounds)
    beside = Table("what", "ours", "instead", "ours / instead", title="CPU time, one thread, taking turns")
    for row in rows:
        beside.add_row(row.what, row.ours, row.theirs, row.shown)
    paper.print(beside)
    hand_over("console", rows)


if __name__ == "__main__":
    run_command(main)
