"""What generation works on: a sample of the held-out split, or the user's own recordings, cut into windows at the training level.

Shapes: W windows of the mixture, N sources, C mel bands, T frames a window, L frames in all.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.dismix.notation import mel_spec
from models.dismix.train_module import TrainModule
from models.features import MelSpec, log_compress, mel
from models.inputs import SILENT, held_out_sample, read_recording, rms
from models.windows import overlap_add, window_starts
from pipeline.errors import UserError

LEVEL = 0.1  # RMS of a mixture as it was prepared; a query has LEVEL / sqrt(number of sources)


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
        """Anything of the windows (W, ..., T) -> of the whole (..., L)."""
        return overlap_add(windows.float().cpu(), self.starts, self.mixture.shape[-1])


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
    audio, length = _recording(path, spec, frames), frames * spec.hop
    starts = range(0, len(audio) - length + 1, spec.hop)
    crop = max((audio[s : s + length] for s in starts), key=rms)
    gain = LEVEL / sources**0.5 / max(rms(crop), SILENT)
    return log_compress(mel(torch.from_numpy(crop * gain), spec), spec)


def _recording(path: Path, spec: MelSpec, frames: int) -> np.ndarray:
    """Mono float32 (n) at the run's sample rate, at least ``frames`` frames of it."""
    return read_recording(path, spec.sample_rate, shortest=frames * spec.hop / spec.sample_rate)[0]


def _sample(number: int, data_folder: Path, frames: int, asked: int) -> Given:
    """Sample ``number`` of the held-out split, and the first frames of its queries."""
    manifest, sample = held_out_sample(number, data_folder)
    mixture = torch.from_numpy(sample["mixture"])
    starts = window_starts(mixture.shape[-1], frames)
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
    audio = _recording(args.mix, spec, frames)
    magnitudes = mel(torch.from_numpy(audio), spec)
    starts = window_starts(magnitudes.shape[-1], frames)
    crops = [audio[s * spec.hop : (s + frames) * spec.hop] for s in starts]
    gains = torch.tensor([LEVEL / max(rms(crop), SILENT) for crop in crops])
    windows = torch.stack([magnitudes[:, s : s + frames] for s in starts]) * gains[:, None, None]
    queries = torch.stack([query(path, spec, asked, len(args.query)) for path in args.query])
    names = [path.stem for path in args.query]
    return Given(log_compress(windows, spec), starts, gains, log_compress(magnitudes, spec), queries, names, audio)
