"""What generation works on: a sample of the held-out split, or the user's own recordings, cut into windows at the training level.

Shapes: W windows of the mixture, N sources, C mel bands, T frames a window, L frames in all.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from models.dismix.showing import mel_spec
from models.dismix.train_module import TrainModule
from models.features import MelSpec, log_compress, mel
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from pipeline.shards import DamagedSample, ShardReader, decode, members

LEVEL = 0.1  # RMS of a mixture as it was prepared; a query has LEVEL / sqrt(number of sources)
SILENT = 1e-4  # RMS that is not amplified further


@dataclass(frozen=True)
class Given:
    """What to work on."""

    windows: Tensor  # (W, C, T) log-mel at the level of the training data
    starts: list[int]  # first frame of each window
    gains: Tensor  # (W,) what brought each window to that level
    mixture: Tensor  # (C, L) log-mel as recorded
    queries: Tensor  # (N, C, T) log-mel
    names: list[str]  # of the sources
    audio: np.ndarray | None = None  # the recording, mono at the run's sample rate, where there is one

    def blend(self, log_mels: Tensor) -> Tensor:
        """Log-mels (W, ..., C, T) at the training level -> (..., C, L) at the recording's."""
        levels = self.gains.log().reshape(-1, *(1,) * (log_mels.ndim - 1))
        return self.blend_frames(log_mels.cpu() - levels)

    def blend_frames(self, windows: Tensor) -> Tensor:
        """Anything of the windows (W, ..., T) -> of the whole (..., L), by triangular weights where they overlap."""
        frames, windows = windows.shape[-1], windows.cpu()
        weight = torch.minimum(torch.arange(1, frames + 1), torch.arange(frames, 0, -1)).float()
        total = torch.zeros(*windows.shape[1:-1], self.mixture.shape[-1])
        weights = torch.zeros(self.mixture.shape[-1])
        for start, window in zip(self.starts, windows, strict=True):
            total[..., start : start + frames] += weight * window
            weights[start : start + frames] += weight
        return total / weights


def given(
    module: TrainModule,
    args: argparse.Namespace,
    data_folder: Path,
    frames: int,
    least: int,
    query_frames: int | None = None,
) -> Given:
    """The sample or the recordings that ``args`` name, in windows of ``frames`` frames; own recordings take ``least`` queries.

    A query has ``query_frames`` frames, or as many as a window.
    """
    own = args.mix or args.query
    if args.sample is not None and own:
        raise UserError("--sample takes the prepared data, --mix and --query your own files: use one of them.")
    spec = mel_spec(module.data)
    asked = query_frames or frames
    return (
        _own_files(args, spec, frames, asked, least) if own else _sample(args.sample or 0, data_folder, frames, asked)
    )


def swapped(swaps: list[list[int]], sources: int, option: str) -> list[int]:
    """Which source each source's latent is taken from after all swaps."""
    order = list(range(sources))
    for i, j in swaps:
        if not (0 <= i < sources and 0 <= j < sources) or i == j:
            raise UserError(f"{option} {i} {j}: takes two different sources out of 0..{sources - 1}.")
        order[i], order[j] = order[j], order[i]
    return order


def query(path: Path, spec: MelSpec, frames: int, sources: int) -> Tensor:
    """Log-mel (C, T) of the loudest T frames of a recording, at the level of one of ``sources`` sources."""
    audio, length = read_audio(path, spec, frames), frames * spec.hop
    starts = range(0, len(audio) - length + 1, spec.hop)
    crop = max((audio[s : s + length] for s in starts), key=_rms)
    gain = LEVEL / sources**0.5 / max(_rms(crop), SILENT)
    return log_compress(mel(torch.from_numpy(crop * gain), spec), spec)


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


def _sample(number: int, data_folder: Path, frames: int, asked: int) -> Given:
    """Sample ``number`` of the held-out split, and the first frames of its queries."""
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
    starts = _starts(mixture.shape[-1], frames)
    windows = torch.stack([mixture[:, s : s + frames] for s in starts])
    names = [manifest.info["instruments"][i] for i in sample["instrument"]]
    queries = torch.from_numpy(sample["queries"][:, 0])[..., :asked]
    return Given(windows, starts, torch.ones(len(starts)), mixture, queries, names)


def _own_files(args: argparse.Namespace, spec: MelSpec, frames: int, asked: int, least: int) -> Given:
    """The user's mixture, cut into windows that overlap by half, and the loudest stretch of each query."""
    if not args.mix or not args.query or len(args.query) < least:
        raise UserError(
            "your own audio takes a mixture and a recording of each instrument: --mix a.wav --query b.wav c.wav."
        )
    audio = read_audio(args.mix, spec, frames)
    magnitudes = mel(torch.from_numpy(audio), spec)
    starts = _starts(magnitudes.shape[-1], frames)
    crops = [audio[s * spec.hop : (s + frames) * spec.hop] for s in starts]
    gains = torch.tensor([LEVEL / max(_rms(crop), SILENT) for crop in crops])
    windows = torch.stack([magnitudes[:, s : s + frames] for s in starts]) * gains[:, None, None]
    queries = torch.stack([query(path, spec, asked, len(args.query)) for path in args.query])
    names = [path.stem for path in args.query]
    return Given(log_compress(windows, spec), starts, gains, log_compress(magnitudes, spec), queries, names, audio)


def _starts(count: int, frames: int) -> list[int]:
    """First frames of windows that overlap by half and cover ``count`` frames to the last."""
    return sorted({*range(0, count - frames + 1, max(1, frames // 2)), count - frames})


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
