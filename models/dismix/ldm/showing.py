"""What one looks at and listens to of the LDM case: spectrograms and piano rolls of sets, and their audio.

Shapes: N sources, M = 1 + N members of a set, F mel bands, T mel frames, P pitch classes (the last is silence).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.dismix.ldm import data as facts
from models.dismix.ldm.rendering import codec_of, encode, render, to_mel
from models.dismix.ldm.training import LdmModule
from models.dismix.notation import mel_spec, note_name
from models.showing import Panel, canvas, save, write_picture, write_wave
from pipeline.train_module import Batch

MARGIN = 3  # semitones around the outermost notes of a piano roll


def write_rolls(
    path: Path, heading: str, rows: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]], low: int, rate: float
) -> Path:
    """Rows of piano rolls: (label, [(title, probabilities (T, P))]); ``low`` is the MIDI note of class 0, ``rate`` frames a second."""
    figure, axes = canvas(len(rows), max(len(panels) for _, panels in rows))
    notes = torch.stack([roll[:, :-1].amax(0) for _, panels in rows for _, roll in panels]).amax(0)
    sounding = (notes > 0.5).nonzero()
    first = max(0, int(sounding.min()) - MARGIN) if len(sounding) else 0
    last = min(len(notes), int(sounding.max()) + MARGIN + 1) if len(sounding) else len(notes)
    image = None
    for row, (label, panels) in enumerate(rows):
        for column, (title, roll) in enumerate(panels):
            axis = axes[row][column]
            extent = (0.0, len(roll) / rate, low + first - 0.5, low + last - 0.5)
            picture = roll[:, first:last].T.float().cpu().numpy()
            image = axis.imshow(picture, origin="lower", aspect="auto", extent=extent, cmap="Greys", vmin=0, vmax=1)
            axis.set_title(title, fontsize=10)
            ticks = [n for n in range(low + first, low + last) if n % 12 == 0]
            axis.set_yticks(ticks, [note_name(n) for n in ticks], fontsize=8)
            axis.set_xlabel("s", fontsize=8)
            if column == 0:
                axis.set_ylabel(label, fontsize=10)
    figure.suptitle(heading, fontsize=12)
    figure.colorbar(image, ax=axes, label="probability", shrink=0.8, pad=0.02)
    return save(figure, path)


@torch.no_grad()
def show_swap(module: LdmModule, batch: Batch, folder: Path, step: int) -> None:
    """Swap the pitches of the first mixture's first two sources: pictures, and the mixture's audio before and after."""
    one = {name: value[:1] for name, value in batch.items()}
    seen = facts.view(one, module.sizes, module.random, "shown/crop")
    codec, spec = codec_of(module), mel_spec(module.data)
    latents = encode(module, codec, seen.mixture, seen.queries)
    order = [1, 0, *range(2, latents.pitch.shape[1])]
    shape = (1 + len(order), *latents.pitch.shape[2:])
    noise = module.random.normal("dismix/shown/noise", one["position"], shape, latents.pitch.device)
    names = [module.data["instruments"][i] for i in one["instrument"][0].tolist()]
    stored = torch.cat([seen.mixture_latent[:, None], seen.sources_latent], dim=1)
    recorded = to_mel(module, codec, module.members_scale(len(order) + 1).apply(stored))[0]
    rendered, swapped = (
        to_mel(module, codec, render(module, latents.timbre, pitch, noise))[0]
        for pitch in (latents.pitch, latents.pitch[:, order])
    )
    moved = [
        f"{name}, {names[i]}'s notes" if i != j else name for j, (name, i) in enumerate(zip(names, order, strict=True))
    ]
    rows = [
        ("through the codec", [Panel("mixture", recorded[0]), *map(Panel, names, recorded[1:])]),
        ("rendered", [Panel("mixture", rendered[0]), *map(Panel, names, rendered[1:])]),
        ("pitches swapped", [Panel("mixture", swapped[0]), *map(Panel, moved, swapped[1:])]),
    ]
    write_picture(folder / "swap.png", f"DisMix after {step} steps", rows, spec)
    wanted = torch.nn.functional.one_hot(module.classes(seen.pitch[0]), module.sizes.pitch_classes)
    rolls = [
        ("notes", list(zip(names, wanted, strict=True))),
        ("heard", list(zip(names, latents.pitch_logits[0].sigmoid(), strict=True))),
    ]
    rate = spec.sample_rate / spec.hop
    write_rolls(folder / "transcription.png", f"Transcription after {step} steps", rolls, module.sizes.pitch_low, rate)
    for name, mel in [("recorded", recorded[0]), ("rendered", rendered[0]), ("swapped", swapped[0])]:
        write_wave(folder / f"{name}.wav", codec.vocode(mel), spec.sample_rate)
