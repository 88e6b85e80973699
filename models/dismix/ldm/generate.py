"""The LDM case's part of ``generate``: change melodies and instruments of a mixture of any length, and render it anew.

Windows overlap by half. They start from one stretch of noise, each from its own part of it, so that they agree where they overlap
as far as their contents do, and what is left of a difference is blended.

Shapes: V windows, N sources, M = 1 + N members, F mel bands, T mel frames of a window, L = T / 4 latent frames, P pitch classes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from models.codecs.base import MelCodec
from models.dismix import inputs
from models.dismix.inputs import Given
from models.dismix.ldm.model import Latents
from models.dismix.ldm.rendering import CHUNK, codec_of, encode, render, to_mel
from models.dismix.ldm.showing import write_rolls
from models.dismix.ldm.training import LdmModule
from models.dismix.notation import mel_spec
from models.showing import Panel, write_picture, write_wave
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom

OFF = -20.0  # logit of a note that surely does not sound


@dataclass(frozen=True)
class Wish:
    """What is asked for, checked against the N sources: whose melody and whose instrument each of them gets, and what else."""

    pitch_order: list[int]
    timbre_order: list[int]
    replaced: dict[int, Path]
    notes: list[tuple[int, int, int]]  # source, class, class
    shifts: dict[int, int]  # source -> semitones
    only: int | None

    @property
    def changes(self) -> bool:
        same = list(range(len(self.pitch_order)))
        moved = self.pitch_order != same or self.timbre_order != same
        return moved or bool(self.replaced or self.notes or self.shifts)


def generate(module: LdmModule, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write audio and pictures into ``out``; returns the files. UserError for inputs that cannot be used."""
    given = inputs.given(
        module, args, data_folder, module.sizes.frames, least=1, query_frames=module.sizes.frames_of_query
    )
    wish = _wish(module, args, len(given.names))
    steps = args.steps
    if steps is not None and not 1 <= steps <= module.sizes.diffusion.steps:
        raise UserError(f"--steps {steps}: the schedule has 1..{module.sizes.diffusion.steps}.")
    codec, spec = codec_of(module), mel_spec(module.data)
    device = module.mean.device
    latents = _encoded(module, codec, given)
    logits = _melodies(wish, latents.pitch_logits)
    pitch = _pitch(module, logits)
    timbre = latents.timbre[:, wish.timbre_order]
    for source, path in wish.replaced.items():
        own = inputs.query(path, spec, module.sizes.frames_of_query, len(given.names))[None].to(device)
        heard = encode(module, codec, own, own[:, None])  # by itself, it is mixture and query at once
        timbre[:, source] = heard.timbre[0, 0]

    def rendered(timbre: Tensor, pitch: Tensor) -> Tensor:
        noise = _noise(given, timbre.shape[1] + 1, tuple(pitch.shape[2:]), args.draw or 0).to(device)
        words = {"alone": wish.only is not None, "sampler": args.sampler, "steps": steps}
        parts = zip(*(x.split(CHUNK) for x in (timbre, pitch, noise)), strict=True)
        return given.blend(torch.cat([to_mel(module, codec, render(module, *part, **words)) for part in parts]))

    before = rendered(latents.timbre, latents.pitch)
    after = rendered(timbre, pitch) if wish.changes else before
    out.mkdir(parents=True, exist_ok=True)
    return _audio(given, codec, before, after, wish, out) + _pictures(
        module, given, latents, logits, (before, after), wish, out
    )


def _wish(module: LdmModule, args: argparse.Namespace, sources: int) -> Wish:
    low, high = module.sizes.pitch_low, module.sizes.pitch_high

    def source(number: int, option: str) -> int:
        if not 0 <= number < sources:
            raise UserError(f"{option} {number}: the sources are 0..{sources - 1}.")
        return number

    replaced = {}
    for number, path in args.replace_instrument or []:
        if not number.isdigit():
            raise UserError(
                f"--replace-instrument takes a source and a file, as in --replace-instrument 0 flute.wav, not '{number}'."
            )
        replaced[source(int(number), "--replace-instrument")] = Path(path)
    notes = []
    for number, old, new in args.note or []:
        for note in (old, new):
            if not low <= note <= high:
                raise UserError(f"--note {number} {old} {new}: this run knows the MIDI notes {low}..{high}.")
        notes.append((source(number, "--note"), old - low, new - low))
    shifts = {source(number, "--transpose"): semitones for number, semitones in args.transpose or []}
    if far := [s for s in shifts.values() if abs(s) > high - low]:
        raise UserError(f"--transpose by {far[0]} semitones leaves the notes that this run knows, MIDI {low}..{high}.")
    return Wish(
        inputs.swapped(args.swap_pitch, sources, "--swap-pitch"),
        inputs.swapped(args.swap_timbre, sources, "--swap-timbre"),
        replaced, notes, shifts,
        None if args.only is None else source(args.only, "--only"),
    )  # fmt: skip


def _encoded(module: LdmModule, codec: MelCodec, given: Given) -> Latents:
    """Latents of all windows, in chunks that fit."""
    device, parts = module.mean.device, []
    for windows in given.windows.to(device).split(CHUNK):
        parts.append(encode(module, codec, windows, given.queries.to(device).expand(len(windows), -1, -1, -1)))
    return Latents(*(torch.cat([getattr(part, name) for part in parts]) for name in Latents.__dataclass_fields__))


def _melodies(wish: Wish, logits: Tensor) -> Tensor:
    """Logits (V, N, T, P) with the melodies exchanged, notes moved, sources transposed; silence stays silence."""
    logits = logits[:, wish.pitch_order].clone()
    for source, old, new in wish.notes:
        logits[:, source, :, [old, new]] = logits[:, source, :, [new, old]]
    for source, semitones in wish.shifts.items():
        notes = logits[:, source, :, :-1]
        moved = torch.full_like(notes, OFF)
        count = notes.shape[-1] - abs(semitones)
        moved[..., max(semitones, 0) :][..., :count] = notes[..., max(-semitones, 0) :][..., :count]
        logits[:, source, :, :-1] = moved
    return logits


@torch.no_grad()
def _pitch(module: LdmModule, logits: Tensor) -> Tensor:
    flat = [module.model.pitch_encoder.latent(part.flatten(0, 1), 0.5) for part in logits.split(CHUNK)]
    return torch.cat(flat).unflatten(0, logits.shape[:2])


def _noise(given: Given, members: int, latent: tuple[int, ...], seed: int) -> Tensor:
    """(V, M, 8, L, W): a member's noise is one stretch over the whole length, of which each window sees its part."""
    channels, frames, features = latent
    starts = [start // 4 for start in given.starts]
    whole = KeyedRandom(seed).normal("dismix/render", torch.arange(members), (channels, starts[-1] + frames, features))
    return torch.stack([whole[:, :, start : start + frames] for start in starts])


def _audio(given: Given, codec: MelCodec, before: Tensor, after: Tensor, wish: Wish, out: Path) -> list[Path]:
    """before.wav (as given), rendered.wav (nothing changed), after.wav, after_source_I.wav; with ``only`` that source alone."""
    rate = codec.sample_rate
    if given.audio is None:
        files = [write_wave(out / "before.wav", codec.vocode(given.mixture), rate)]
    else:
        files = [out / "before.wav"]
        soundfile.write(files[0], given.audio, rate, subtype="PCM_16")
    if wish.only is None:
        files.append(write_wave(out / "after.wav", codec.vocode(after[0]), rate))
        if wish.changes:
            files.append(write_wave(out / "rendered.wav", codec.vocode(before[0]), rate))
    for i in range(len(given.names)) if wish.only is None else [wish.only]:
        files.append(write_wave(out / f"after_source_{i}.wav", codec.vocode(after[1 + i]), rate))
    return files


def _pictures(
    module: LdmModule,
    given: Given,
    latents: Latents,
    logits: Tensor,
    mels: tuple[Tensor, Tensor],
    wish: Wish,
    out: Path,
) -> list[Path]:
    """Spectrograms and piano rolls of all sources, before and after."""
    spec, names = mel_spec(module.data), given.names
    new = [wish.replaced[i].stem if i in wish.replaced else names[t] for i, t in enumerate(wish.timbre_order)]
    shown = range(len(names)) if wish.only is None else [wish.only]
    rows, rolls = [], []
    notes = latents.pitch_logits.sigmoid(), logits.sigmoid()
    for label, titles, mel, roll in zip(("before", "after"), (names, new), mels, notes, strict=True):
        first = "mixture, as given" if label == "before" else "mixture"
        mixture = [Panel(first, given.mixture if label == "before" else mel[0])] if wish.only is None else []
        rows.append((label, mixture + [Panel(titles[i], mel[1 + i]) for i in shown]))
        whole = given.blend_frames(roll.transpose(-1, -2)).transpose(-1, -2)  # (N, length, P)
        rolls.append((label, [(titles[i], whole[i]) for i in shown]))
    rate = spec.sample_rate / spec.hop
    return [
        write_picture(out / "spectrograms.png", "DisMix", rows, spec),
        write_rolls(out / "transcription.png", "Transcription", rolls, module.sizes.pitch_low, rate),
    ]
