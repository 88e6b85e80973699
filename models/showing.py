"""What one looks at and listens to: rows of spectrograms or waveforms as pictures, and audio files.

Shapes: C mel bands, T frames, A audio channels, n samples.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from models.features import MelSpec, waveform

FADE = 0.02  # seconds at both ends of rendered audio
DYNAMICS = 70  # decibels from the loudest point down that a picture shows
BINS = 2000  # columns that a waveform is drawn with: the lowest and the highest of each is shown


@dataclass(frozen=True)
class Panel:
    """One spectrogram of a picture: ``log_mel`` (C, T)."""

    title: str
    log_mel: Tensor


def write_audio(path: Path, log_mel: Tensor, spec: MelSpec) -> Path:
    """Griffin-Lim of a log-mel (C, T) as 16-bit WAV; see ``write_wave``."""
    return write_wave(path, waveform(log_mel.float().cpu(), spec), spec.sample_rate)


def write_wave(path: Path, wave: Tensor, sample_rate: int) -> Path:
    """A rendered waveform (n) or (A, n) as 16-bit WAV, faded at both ends, turned down where it would clip.

    OSError where it cannot be written.
    """
    audio = wave.float().cpu().numpy()
    ramp = np.minimum(1, np.arange(audio.shape[-1]) / (FADE * sample_rate))
    audio = audio * ramp * ramp[::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = audio / max(1.0, float(np.abs(audio).max(initial=0.0)) / 0.99)
    whole = (
        io.BytesIO()
    )  # not into the file: what a full disk says to libsndfile is no OSError, and would end a training
    soundfile.write(whole, audio.T, sample_rate, format="WAV", subtype="PCM_16")
    path.write_bytes(whole.getvalue())
    return path


def write_waveforms(
    path: Path, heading: str, rows: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]], sample_rate: int
) -> Path:
    """Rows of waveforms on one scale: (label, [(title, (n) or (A, n))]); channels are drawn over each other."""
    figure, axes = canvas(len(rows), max(len(waves) for _, waves in rows), height=1.4)
    highest = max(float(wave.abs().max()) for _, waves in rows for _, wave in waves) or 1.0
    for row, (label, waves) in enumerate(rows):
        for column, (title, wave) in enumerate(waves):
            axis = axes[row][column]
            for channel in wave.reshape(-1, wave.shape[-1]).float().cpu().numpy():
                pieces = np.array_split(channel, min(BINS, len(channel)))
                seconds = np.linspace(0, len(channel) / sample_rate, len(pieces))
                low, high = ([float(pick(piece)) for piece in pieces] for pick in (np.min, np.max))
                axis.fill_between(seconds, low, high, linewidth=0.3, alpha=0.8)
            axis.set(ylim=(-highest, highest), xlim=(0, wave.shape[-1] / sample_rate))
            axis.set_title(title, fontsize=10)
            axis.tick_params(labelsize=8, labelbottom=row == len(rows) - 1, labelleft=column == 0)
            if row == len(rows) - 1:
                axis.set_xlabel("s", fontsize=8)
            if column == 0:
                axis.set_ylabel(label, fontsize=10)
    figure.suptitle(heading, fontsize=12)
    return save(figure, path)


def write_picture(path: Path, heading: str, rows: Sequence[tuple[str, Sequence[Panel]]], spec: MelSpec) -> Path:
    """Rows of spectrograms on one colour scale, in decibels below the loudest point of all of them."""
    figure, axes = canvas(len(rows), max(len(panels) for _, panels in rows))
    loudest = max(float(panel.log_mel.max()) for _, panels in rows for panel in panels)
    image = None
    for row, (label, panels) in enumerate(rows):
        for column, panel in enumerate(panels):
            axis = axes[row][column]
            decibels = 20 / np.log(10) * (panel.log_mel.float().cpu().numpy() - loudest)
            seconds = panel.log_mel.shape[-1] * spec.hop / spec.sample_rate
            long = seconds > 1
            extent = (0.0, seconds if long else 1000 * seconds, 0.0, float(len(decibels)))
            image = axis.imshow(
                decibels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-DYNAMICS, vmax=0
            )
            axis.set_title(panel.title, fontsize=10)
            _label_axes(axis, spec, "s" if long else "ms", first=column == 0, last=row == len(rows) - 1)
            if column == 0:
                axis.set_ylabel(f"{label}\nHz", fontsize=9)
    figure.suptitle(heading, fontsize=12)
    figure.colorbar(image, ax=axes, label="dB below the loudest point", shrink=0.8, pad=0.02)
    return save(figure, path)


def canvas(rows: int, columns: int, width: float = 2.6, height: float = 2.2) -> tuple[Any, Any]:
    """A figure and its axes (rows, columns), inches for each; off any screen, closed with its last reference."""
    import matplotlib.figure  # late: nobody who only trains waits for it

    figure = matplotlib.figure.Figure(figsize=(1.6 + width * columns, 0.6 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _label_axes(axis: Any, spec: MelSpec, unit: str, *, first: bool, last: bool) -> None:
    """Mel bands as Hz on the left column, ``unit`` of time on the bottom row."""
    hertz = [100, 500, 1000, 2000, 4000]
    top = _slaney(spec.f_max) - _slaney(spec.f_min)
    bands = [(_slaney(h) - _slaney(spec.f_min)) / top * spec.bands for h in hertz]
    axis.set_yticks(bands, [str(h) if first else "" for h in hertz], fontsize=8)
    axis.tick_params(axis="x", labelsize=8, labelbottom=last)
    if last:
        axis.set_xlabel(unit, fontsize=8)


def _slaney(hertz: float) -> float:
    """The Slaney mel scale: linear below 1 kHz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def save(figure: Any, path: Path) -> Path:
    """Write the picture, and the folders above it where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
