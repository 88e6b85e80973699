"""Swap the pitch or the timbre of two sources of a mixture, and hear and see what becomes of it.

The mixture is a sample of the held-out split (--sample 0) or your own recording with a recording of each instrument by
itself (--mix duo.wav --query violin.wav flute.wav); sources are numbered from 0 in the order of the queries.
Written are WAVs of the mixture before and after and of each source after, and swap.png. What lasts 320 ms is also written
held for two seconds (its frames forwards and backwards). All audio but before.wav of your own recording comes out of
spectrograms by Griffin-Lim, and sounds like it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from models.dismix.showing import Panel, held, mel_spec, note_name, write_audio, write_picture
from models.dismix.train_module import TrainModule
from models.features import MelSpec, log_compress, mel
from pipeline.errors import UserError
from pipeline.shards import DamagedSample, ShardReader, decode, members, read_manifest

LEVEL = 0.1  # RMS of a mixture as it was prepared; a query has LEVEL / sqrt(number of sources)
SILENT = 1e-4  # RMS that is not amplified further
SHORT = 1.0  # seconds; what is shorter is also written held


@dataclass(frozen=True)
class Given:
    """What to work on. W windows of the mixture, N sources, C mel bands, T frames a window, L frames in all."""

    windows: Tensor  # (W, C, T) log-mel at the level of the training data
    starts: list[int]  # first frame of each window
    gains: Tensor  # (W,) what brought each window to that level
    mixture: Tensor  # (C, L) log-mel as recorded
    queries: Tensor  # (N, C, T) log-mel
    names: list[str]  # of the sources
    audio: np.ndarray | None = None  # the recording, mono at the run's sample rate, where there is one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sample", type=int, metavar="K", help="sample K of the held-out split (the default: 0)")
    parser.add_argument(
        "--mix", type=Path, metavar="FILE", help="your own mixture, any sample rate and channels, 320 ms or longer"
    )
    parser.add_argument(
        "--query", type=Path, nargs="+", metavar="FILE", help="one recording per instrument in the mixture"
    )
    for what in ("timbre", "pitch"):
        parser.add_argument(
            f"--swap-{what}", type=int, nargs=2, action="append", default=[], metavar=("I", "J"),
            help=f"sources I and J exchange their {what}; may be repeated",
        )  # fmt: skip


@torch.no_grad()
def generate(module: TrainModule, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write audio and a picture into ``out``; returns the files. UserError for inputs that cannot be used."""
    spec = mel_spec(module.data)
    given = _own_files(module, args, spec) if args.mix or args.query else _sample(module, args.sample or 0, data_folder)
    if args.sample is not None and (args.mix or args.query):
        raise UserError("--sample takes the prepared data, --mix and --query your own files: use one of them.")
    if not args.swap_timbre and not args.swap_pitch:
        raise UserError("say what to swap: --swap-timbre 0 1 or --swap-pitch 0 1.")
    sources = len(given.names)
    pitch_order = _order(args.swap_pitch, sources, "--swap-pitch")
    timbre_order = _order(args.swap_timbre, sources, "--swap-timbre")

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


def _order(swaps: list[list[int]], sources: int, option: str) -> list[int]:
    """Which source each source's latent is taken from after all swaps."""
    order = list(range(sources))
    for i, j in swaps:
        if not (0 <= i < sources and 0 <= j < sources) or i == j:
            raise UserError(f"{option} {i} {j}: takes two different sources out of 0..{sources - 1}.")
        order[i], order[j] = order[j], order[i]
    return order


def _render(module: TrainModule, given: Given, timbre: Tensor, pitch: Tensor) -> Tensor:
    """Latents (W, N, D) -> mixture and sources (1 + N, C, L), log-mel at the level of the recording.

    Overlapping windows are blended with triangular weights.
    """
    sources, mixture = module.model.render(timbre, pitch, given.windows.shape[-1])
    log_mel = (
        module.log_mel(torch.cat([mixture[:, None], sources], dim=1)).cpu() - given.gains.log()[:, None, None, None]
    )
    frames = log_mel.shape[-1]
    weight = torch.minimum(torch.arange(1, frames + 1), torch.arange(frames, 0, -1)).float()
    total = torch.zeros(*log_mel.shape[1:-1], given.mixture.shape[-1])
    weights = torch.zeros(given.mixture.shape[-1])
    for start, window in zip(given.starts, log_mel, strict=True):
        total[..., start : start + frames] += weight * window
        weights[start : start + frames] += weight
    return total / weights


def _sample(module: TrainModule, number: int, data_folder: Path) -> Given:
    """Sample ``number`` of the held-out split."""
    manifest = read_manifest(data_folder)
    shards, total = manifest.split("test"), manifest.samples("test")
    if not 0 <= number < total:
        raise UserError(f"--sample {number}: the held-out split of {data_folder} has the samples 0..{total - 1}.")
    row = number
    for shard in shards:
        if row < shard.samples:
            break
        row -= shard.samples
    try:
        sample = decode(members(ShardReader(data_folder, shard).read(row)))
    except DamagedSample as error:
        raise UserError(f"--sample {number}: {error}; prepare the data again.") from None
    mixture = torch.from_numpy(sample["mixture"])
    names = [manifest.info["instruments"][i] for i in sample["instrument"]]
    return Given(mixture[None], [0], torch.ones(1), mixture, torch.from_numpy(sample["queries"][:, 0]), names)


def _own_files(module: TrainModule, args: argparse.Namespace, spec: MelSpec) -> Given:
    """The user's mixture, cut into windows that overlap by half, and the loudest 320 ms of each query."""
    if not args.mix or not args.query or len(args.query) < 2:
        raise UserError(
            "your own audio takes a mixture and a recording of each instrument: --mix a.wav --query b.wav c.wav."
        )
    frames, sources = int(module.data["frames"]), int(module.data["sources"])
    audio = read_audio(args.mix, spec, frames)
    magnitudes = mel(torch.from_numpy(audio), spec)
    count = magnitudes.shape[-1]
    starts = sorted({*range(0, count - frames + 1, max(1, frames // 2)), count - frames})
    crops = [audio[s * spec.hop : (s + frames) * spec.hop] for s in starts]
    gains = torch.tensor([LEVEL / max(_rms(crop), SILENT) for crop in crops])
    windows = torch.stack([magnitudes[:, s : s + frames] for s in starts]) * gains[:, None, None]
    queries = [_query(read_audio(path, spec, frames), spec, frames, LEVEL / sources**0.5) for path in args.query]
    names = [path.stem for path in args.query]
    mixture = log_compress(magnitudes, spec)
    return Given(log_compress(windows, spec), starts, gains, mixture, torch.stack(queries), names, audio)


def _query(audio: np.ndarray, spec: MelSpec, frames: int, level: float) -> Tensor:
    """Log-mel (C, T) of the loudest T frames of a recording, at ``level``."""
    length = frames * spec.hop
    starts = range(0, len(audio) - length + 1, spec.hop)
    crop = max((audio[s : s + length] for s in starts), key=_rms)
    return log_compress(mel(torch.from_numpy(crop * (level / max(_rms(crop), SILENT))), spec), spec)


def read_audio(path: Path, spec: MelSpec, frames: int) -> np.ndarray:
    """Mono float32 at the run's sample rate from any file libsndfile reads; UserError where there is nothing to use."""
    import soxr

    if not path.is_file():
        raise UserError(f"{path} is not there.")
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path} is not audio that can be read ({error.error_string.rstrip('.')}); give a WAV or FLAC."
        ) from None
    mono = audio.mean(axis=1)
    if rate != spec.sample_rate:
        mono = soxr.resample(mono, rate, spec.sample_rate, quality="VHQ")
    shortest = frames * spec.hop
    if len(mono) < shortest:
        seconds = len(mono) / spec.sample_rate
        raise UserError(f"{path} lasts {seconds:.2f} s; at least {shortest / spec.sample_rate:.2f} s are needed.")
    if not np.isfinite(mono).all() or _rms(mono) < SILENT:
        raise UserError(f"{path} is silent or holds numbers that are no audio.")
    return np.ascontiguousarray(mono, np.float32)


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
