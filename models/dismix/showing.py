"""What one looks at and listens to: spectrograms before and after a swap, their audio, and the timbre space.

A note of 320 ms is too short to judge by ear, so its spectrogram is also *held*: its frames are gone through forwards and
backwards until two seconds are full, and Griffin-Lim renders that as one note.

Shapes: N sources, C mel bands, T frames, L frames when held, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from models.features import MelSpec, waveform

if TYPE_CHECKING:
    from models.dismix.train_module import TrainModule
    from pipeline.train_module import Batch

HELD = 2.0  # seconds
FADE = 0.02  # seconds at both ends of held audio
DYNAMICS = 70  # decibels from the loudest point down that a picture shows
NOTES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")


@dataclass(frozen=True)
class Panel:
    """One spectrogram of a picture: ``log_mel`` (C, T)."""

    title: str
    log_mel: Tensor


def note_name(midi: int) -> str:
    """60 -> C4."""
    return f"{NOTES[midi % 12]}{midi // 12 - 1}"


def mel_spec(info: dict[str, Any]) -> MelSpec:
    """How the run's data computed its mels."""
    mel = {k: v for k, v in info["mel"].items() if k != "compression"}
    return MelSpec(sample_rate=info["sample_rate"], **mel)


def held(log_mel: Tensor, spec: MelSpec) -> Tensor:
    """(..., C, T) -> (..., C, L): the frames forwards, backwards, forwards, ... for ``HELD`` seconds."""
    frames, length = log_mel.shape[-1], round(HELD * spec.sample_rate / spec.hop)
    there_and_back = torch.cat([torch.arange(frames), torch.arange(frames - 2, 0, -1)])
    return log_mel[..., there_and_back.repeat(-(-length // len(there_and_back)))[:length]]


def write_audio(path: Path, log_mel: Tensor, spec: MelSpec) -> Path:
    """Griffin-Lim of a log-mel (C, T) as 16-bit WAV, faded at both ends, turned down where it would clip."""
    audio = waveform(log_mel.float().cpu(), spec).numpy()
    ramp = np.minimum(1, np.arange(len(audio)) / (FADE * spec.sample_rate))
    audio = audio * ramp * ramp[::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio / max(1.0, float(np.abs(audio).max()) / 0.99), spec.sample_rate, subtype="PCM_16")
    return path


def write_picture(path: Path, heading: str, rows: Sequence[tuple[str, Sequence[Panel]]], spec: MelSpec) -> Path:
    """Rows of spectrograms on one colour scale, in decibels below the loudest point of all of them."""
    figure, axes = _canvas(len(rows), max(len(panels) for _, panels in rows))
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
                axis.annotate(
                    label, (-0.42, 0.5), xycoords="axes fraction", rotation=90, va="center", fontsize=11, weight="bold"
                )
    figure.suptitle(heading, fontsize=12)
    figure.colorbar(image, ax=axes, label="dB below the loudest point", shrink=0.8, pad=0.02)
    return _save(figure, path)


def show_timbre_space(timbre: Tensor, instrument: Tensor, names: Sequence[str], folder: Path) -> Path:
    """Timbre latents (K, D) in the plane of their two largest principal components, by instrument (Fig. 2, left)."""
    centred = (timbre - timbre.mean(0)).double()
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :2]
    points = (centred @ directions).numpy()
    figure, axes = _canvas(1, 1, width=5.0, height=4.0)
    for number, name in enumerate(names):
        chosen = (instrument == number).numpy()
        axes[0][0].scatter(points[chosen, 0], points[chosen, 1], s=4, alpha=0.5, label=name)
    axes[0][0].legend(markerscale=3, fontsize=8)
    axes[0][0].set(xlabel="first principal component", ylabel="second", title="Timbre latents of held-out sources")
    return _save(figure, folder / "timbre_space.png")


@torch.no_grad()
def show_swap(module: TrainModule, batch: Batch, folder: Path, step: int) -> None:
    """Swap the pitches of the first mixture's first two sources: a picture, and the mixture's audio before and after."""
    spec, names = mel_spec(module.data), module.data["instruments"]
    mixture, sources = batch["mixture"][:1], batch["sources"][0]
    latents = module.model.encode(module.standardise(mixture), module.standardise(batch["queries"][:1, :, 0]))
    order = [1, 0, *range(2, latents.pitch.shape[1])]
    before = [module.log_mel(m)[0] for m in module.model.render(latents.timbre, latents.pitch, mixture.shape[-1])]
    after = [
        module.log_mel(m)[0] for m in module.model.render(latents.timbre, latents.pitch[:, order], mixture.shape[-1])
    ]
    played = [names[i] for i in batch["instrument"][0].tolist()]
    notes = [note_name(p) for p in batch["pitch"][0].tolist()]
    titles = [f"{player}, {note}" for player, note in zip(played, notes, strict=True)]
    swapped = [f"{player}, {notes[i]}" for player, i in zip(played, order, strict=True)]
    rows = [
        ("recorded", [Panel("mixture", mixture[0]), *map(Panel, titles, sources)]),
        ("rendered", [Panel("mixture", before[1]), *map(Panel, titles, before[0])]),
        ("pitches swapped", [Panel("mixture", after[1]), *map(Panel, swapped, after[0])]),
    ]
    write_picture(folder / "swap.png", f"DisMix after {step} steps", rows, spec)
    for name, log_mel in [("recorded", mixture[0]), ("rendered", before[1]), ("swapped", after[1])]:
        write_audio(folder / f"{name}.wav", held(log_mel, spec), spec)


def _canvas(rows: int, columns: int, width: float = 2.6, height: float = 2.2) -> tuple[Any, Any]:
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
    if first:
        axis.set_ylabel("Hz", fontsize=8)
    if last:
        axis.set_xlabel(unit, fontsize=8)


def _slaney(hertz: float) -> float:
    """The Slaney mel scale: linear below 1 kHz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
