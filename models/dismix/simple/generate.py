"""The simple case's part of ``generate``: swap the pitch or the timbre of two notes, and hear and see what becomes of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from models.dismix import inputs
from models.dismix.inputs import Given
from models.dismix.notation import mel_spec, note_name
from models.dismix.simple.showing import held
from models.dismix.simple.training import SimpleModule
from models.features import MelSpec
from models.showing import Panel, write_audio, write_picture
from pipeline.errors import UserError

SHORT = 1.0  # seconds; what is shorter is also written held


@torch.no_grad()
def generate(module: SimpleModule, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write audio and a picture into ``out``; returns the files. UserError for inputs that cannot be used."""
    spec = mel_spec(module.data)
    given = inputs.given(module, args, data_folder, int(module.data["frames"]), least=2)
    if not args.swap_timbre and not args.swap_pitch:
        raise UserError("say what to swap: --swap-timbre 0 1 or --swap-pitch 0 1.")
    sources = len(given.names)
    pitch_order = inputs.swapped(args.swap_pitch, sources, "--swap-pitch")
    timbre_order = inputs.swapped(args.swap_timbre, sources, "--swap-timbre")

    device = module.mean.device
    queries = module.standardise(given.queries.to(device)).expand(len(given.windows), -1, -1, -1)
    latents = module.model.encode(module.standardise(given.windows.to(device)), queries)
    pitch, timbre = latents.pitch[:, pitch_order], latents.timbre[:, timbre_order]
    notes = (latents.pitch_logits[0].argmax(-1) + module.pitch_low).tolist()
    before = _render(module, given, latents.timbre, latents.pitch)
    after = _render(module, given, timbre, pitch)
    out.mkdir(parents=True, exist_ok=True)

    def title(timbre_of: int, pitch_of: int) -> str:
        # Over many windows there is no one note to name, but a melody.
        melody = f"the notes of {given.names[pitch_of]}" if pitch_of != timbre_of else "its own notes"
        return f"{given.names[timbre_of]}, {note_name(notes[pitch_of]) if len(given.windows) == 1 else melody}"

    old = [title(i, i) for i in range(sources)]
    new = [title(t, p) for t, p in zip(timbre_order, pitch_order, strict=True)]
    rows = [
        ("before", [Panel("mixture, as given", given.mixture), *map(Panel, old, before[1:])]),
        ("after", [Panel("mixture", after[0]), *map(Panel, new, after[1:])]),
    ]
    swaps = [f"{what} {i} ↔ {j}" for what in ("timbre", "pitch") for i, j in getattr(args, f"swap_{what}")]
    written = [write_picture(out / "swap.png", "DisMix: " + ", ".join(swaps), rows, spec)]
    return written + _write_all(given, before[0], after, out, spec)


def _write_all(given: Given, rendered: Tensor, after: Tensor, out: Path, spec: MelSpec) -> list[Path]:
    """before.wav, rendered.wav (nothing swapped), after.wav, after_source_I.wav, and held versions of short ones."""
    parts = {"before": given.mixture, "rendered": rendered, "after": after[0]}
    parts |= {f"after_source_{i}": source for i, source in enumerate(after[1:])}
    written = []
    for name, log_mel in parts.items():
        if name == "before" and given.audio is not None:
            soundfile.write(out / "before.wav", given.audio, spec.sample_rate, subtype="PCM_16")
            written.append(out / "before.wav")
        else:
            written.append(write_audio(out / f"{name}.wav", log_mel, spec))
        if log_mel.shape[-1] * spec.hop < SHORT * spec.sample_rate:
            written.append(write_audio(out / f"{name}_held.wav", held(log_mel, spec), spec))
    return written


def _render(module: SimpleModule, given: Given, timbre: Tensor, pitch: Tensor) -> Tensor:
    """Latents (W, N, D) -> mixture and sources (1 + N, C, L), log-mel at the level of the recording."""
    sources, mixture = module.model.render(timbre, pitch, given.windows.shape[-1])
    return given.blend(module.log_mel(torch.cat([mixture[:, None], sources], dim=1)))
