"""What an engineer looks at: the settings as a table, the equaliser's curve, the gain reduction, the spectrum before and after.

Shapes: F frequencies, T milliseconds, n samples, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.blocks.console import filters
from models.blocks.console.console import Rendered, equaliser_sections
from models.blocks.console.settings import named
from models.diff_mst.preset import Preset
from models.showing import canvas, save, write_wave

if TYPE_CHECKING:
    from models.diff_mst.train_module import TrainModule
    from pipeline.train_module import Batch

POINTS = 2000  # of gain reduction in a picture
TITLES = {"track": "track", "bus": "bus", "master": "master"}


def equaliser_curve(values: Tensor, section: tuple, sample_rate: int, hertz: Tensor) -> Tensor:
    """A strip's settings (..., P) -> dB at ``hertz`` (F,), (..., F): high-pass and all bands together."""
    sections = equaliser_sections(named(values, section), sample_rate)
    return 20 * filters.cascade(sections.double(), 2 * np.pi / sample_rate * hertz).abs().clamp(min=1e-6).log10()


def write_table(path: Path, preset: Preset) -> Path:
    """Every knob in its unit; of settings that move where they begin, and between what they go."""
    from rich.console import Console
    from rich.table import Table

    with path.open("w", encoding="utf-8") as file:
        paper = Console(file=file, width=100)
        for name, section in preset.layout.sections.items():
            for strip in range(preset.settings[name].shape[1]):
                values = preset.settings[name][0, strip]
                title = f"{name}: {preset.names[strip]}" if name == "track" else name
                table = Table("knob", "at 0 s", "unit", "lowest", "highest", title=title)
                if name == "track" and preset.trims[strip]:
                    table.add_row("trim", f"{preset.trims[strip]:+.2f}", "dB", "", "")
                for knob, column in zip(section, values.unbind(-1), strict=True):
                    moving = (
                        [f"{float(end):.4g}" for end in (column.min(), column.max())] if len(column) > 1 else ["", ""]
                    )
                    table.add_row(knob.name, f"{float(column[0]):.4g}", knob.unit, *moving)
                paper.print(table)
        if preset.turned_down:
            paper.print(f"The mix was turned down by {preset.turned_down:.2f} dB so that it does not clip.")
    return path


def write_equaliser(path: Path, preset: Preset) -> Path:
    """The curve of each track and of the master; a band shows how far it moves."""
    strips = [("track", i) for i in range(preset.layout.tracks)] + ([("master", 0)] if preset.layout.master else [])
    figure, axes = canvas(1, 1, width=6.0, height=3.4)
    axis = axes[0][0]
    hertz = torch.logspace(np.log10(20), np.log10(preset.layout.sample_rate / 2.1), 400)
    for name, strip in strips:
        values = preset.settings[name][:, strip]
        curve = equaliser_curve(values, preset.layout.sections[name], preset.layout.sample_rate, hertz)[0].numpy()
        label = preset.names[strip] if name == "track" else name
        (line,) = axis.semilogx(hertz.numpy(), np.median(curve, axis=0), label=label)
        if len(curve) > 1:
            axis.fill_between(hertz.numpy(), curve.min(0), curve.max(0), alpha=0.25, color=line.get_color())
    axis.set(xlabel="Hz", ylabel="dB", title="Equaliser", ylim=(-24, 18))
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return save(figure, path)


def write_reduction(path: Path, rendered: Rendered) -> Path:
    """Gain reduction of each compressor and de-esser over time."""
    figure, axes = canvas(len(rendered.reduction), 1, width=6.0, height=1.8)
    for row, (name, reduction) in enumerate(rendered.reduction.items()):
        for curve in -reduction[0].float().cpu().numpy():
            pieces = np.array_split(curve, min(POINTS, len(curve)))
            seconds = np.linspace(0, len(curve) / 1000, len(pieces))
            axes[row][0].plot(seconds, [piece.min() for piece in pieces], linewidth=0.7)
        axes[row][0].set(ylabel="dB", title=f"Gain of the {name.replace('_', '-')}")
        axes[row][0].grid(alpha=0.3)
    axes[-1][0].set_xlabel("s")
    return save(figure, path)


def spectrum(wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(C, n) -> Hz and dB of the long-term average spectrum, in third octaves from 25 Hz."""
    from scipy.signal import welch

    hertz, power = welch(wave, sample_rate, nperseg=min(8192, wave.shape[1]), axis=1)
    centres = 25 * 2 ** (np.arange(0, np.log2(sample_rate / 2 / 25), 1 / 3))
    near = [(hertz >= c * 2 ** (-1 / 6)) & (hertz < c * 2 ** (1 / 6)) for c in centres]
    kept = [i for i, inside in enumerate(near) if inside.any()]
    total = power.mean(0)
    return centres[kept], np.array([10 * np.log10(max(total[near[i]].mean(), 1e-20)) for i in kept])


def write_spectra(path: Path, waves: dict[str, np.ndarray], sample_rate: int) -> Path:
    """Long-term spectra of (C, n) waveforms over each other."""
    figure, axes = canvas(1, 1, width=6.0, height=3.4)
    for name, wave in waves.items():
        axes[0][0].semilogx(*spectrum(wave, sample_rate), label=name)
    axes[0][0].set(xlabel="Hz", ylabel="dB", title="Spectrum, third octaves")
    axes[0][0].grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=8)
    return save(figure, path)


@torch.no_grad()
def show_progress(module: TrainModule, batch: Batch, folder: Path, step: int) -> None:
    """The first sample of a batch: what went in, what came out and what was wanted, and the settings behind it."""
    one = {name: value[:1] for name, value in batch.items()}
    seen = module.view(one)
    rendered, settings = module.mixed(seen)
    names = tuple(f"track {i}" for i in range(module.layout.tracks))
    preset = Preset(module.layout, {k: v.cpu() for k, v in settings.items()}, names, (0.0,) * len(names))
    folder.mkdir(parents=True, exist_ok=True)
    wanted = "reference" if module.model_config.reference == "other" else "wanted"
    waves = {"in": seen.tracks[0].sum(0, keepdim=True), "mix": rendered.mix[0], wanted: seen.like[0]}
    for name, wave in waves.items():
        write_wave(folder / f"{name}.wav", wave, module.sample_rate)
    write_spectra(folder / "spectra.png", {n: w.float().cpu().numpy() for n, w in waves.items()}, module.sample_rate)
    write_equaliser(folder / "equaliser.png", preset)
    write_reduction(folder / "reduction.png", rendered)
    write_table(folder / "settings.txt", preset)
