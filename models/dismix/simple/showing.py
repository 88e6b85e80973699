"""What one looks at and listens to of the simple case: a swap under training, notes held long enough to hear, the timbre space.

A note of 320 ms is too short to judge by ear, so its spectrogram is also *held*: its frames are gone through forwards and
backwards until two seconds are full, and Griffin-Lim renders that as one note.

Shapes: N sources, C mel bands, T frames, L frames when held, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.dismix.notation import mel_spec, note_name
from models.features import MelSpec
from models.showing import Panel, canvas, save, write_audio, write_picture

if TYPE_CHECKING:
    from models.dismix.simple.training import SimpleModule
    from pipeline.train_module import Batch

HELD = 2.0  # seconds


def held(log_mel: Tensor, spec: MelSpec) -> Tensor:
    """(..., C, T) -> (..., C, L): the frames forwards, backwards, forwards, ... for ``HELD`` seconds."""
    frames, length = log_mel.shape[-1], round(HELD * spec.sample_rate / spec.hop)
    there_and_back = torch.cat([torch.arange(frames), torch.arange(frames - 2, 0, -1)])
    return log_mel[..., there_and_back.repeat(-(-length // len(there_and_back)))[:length]]


def show_timbre_space(timbre: Tensor, instrument: Tensor, names: Sequence[str], folder: Path) -> Path:
    """Timbre latents (K, D) in the plane of their two largest principal components, by instrument (Fig. 2, left)."""
    centred = (timbre - timbre.mean(0)).double()
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :2]
    points = (centred @ directions).numpy()
    figure, axes = canvas(1, 1, width=5.0, height=4.0)
    for number, name in enumerate(names):
        chosen = (instrument == number).numpy()
        axes[0][0].scatter(points[chosen, 0], points[chosen, 1], s=4, alpha=0.5, label=name)
    axes[0][0].legend(markerscale=3, fontsize=8)
    axes[0][0].set(xlabel="first principal component", ylabel="second", title="Timbre latents of held-out sources")
    return save(figure, folder / "timbre_space.png")


@torch.no_grad()
def show_swap(module: SimpleModule, batch: Batch, folder: Path, step: int) -> None:
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
