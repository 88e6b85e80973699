"""A whole song: what the engineer decides window by window, smoothed, and the console over all of it at the song's own sample rate.

Shapes: N tracks, n samples, W windows, K settings along time, P knobs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.blocks.console.console import Console, Rendered
from models.blocks.console.settings import from_turns
from models.blocks.console.space import SECONDS
from models.diff_mst.data import LOUDEST_TRIM, SILENT
from models.diff_mst.preset import Preset
from models.diff_mst.train_module import TrainModule
from models.windows import window_starts

QUIET = 1e-3  # RMS of a window that is not listened to
SMOOTHING = 5  # windows over which settings are averaged, by a triangle
BATCH = 8  # windows heard at a time
HEADROOM = 0.999  # of full scale


@dataclass(frozen=True)
class Song:
    """``own`` float32 (N, n) at the song's rate; ``heard`` (N, m) the same at the rate of training, ``reference`` (2, m) at that, too."""

    names: tuple[str, ...]
    own: np.ndarray
    sample_rate: int
    heard: np.ndarray
    reference: np.ndarray | None = None


@torch.inference_mode()
def decided(module: TrainModule, song: Song, steady: bool) -> Preset:
    """The settings for a song: moving with it, or (``steady``) one for all of it. A room does not move: the bus has always one."""
    rate, model = module.sample_rate, module.model_config
    window = int(module.data["segment"]) // (2 if model.reference == "made" else 1)
    trims = [_trim(track, rate, model.track_loudness) for track in song.heard]
    heard = torch.from_numpy(song.heard) * torch.tensor([10 ** (trim / 20) for trim in trims])[:, None]
    heard = _at_least(heard.float(), window)
    reference = None
    if song.reference is not None:
        gain = 10 ** (_trim(song.reference, rate, model.reference_loudness) / 20)
        reference = _loudest(_at_least(torch.from_numpy(song.reference).float() * gain, window), window)
    starts = range(0, heard.shape[-1] - window + 1, window // 2)
    windows = torch.stack([heard[:, start : start + window] for start in starts])
    turns = _turns(module, windows, reference)
    loud = windows.square().mean((1, 2)).sqrt() >= QUIET
    if not loud.any():
        loud = torch.ones_like(loud)
    steady = steady or len(windows) == 1
    settings = {
        name: from_turns(
            _mean(turns[name][loud]) if steady or name == "bus" else _smooth(_filled(turns[name], loud)), section
        )
        for name, section in module.layout.sections.items()
    }
    spacing = None if steady else window // 2
    preset = Preset(module.layout, settings, song.names, tuple(trims), spacing)
    return preset.at(song.sample_rate)


def _turns(module: TrainModule, windows: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    """Windows (W, N, T) -> positions of the knobs (W, S, P)."""
    device = next(module.parameters()).device
    found: list[dict[str, Tensor]] = []
    for batch in windows.split(BATCH):
        shown = None if reference is None else reference.expand(len(batch), -1, -1).to(device)
        found.append({name: turn.cpu() for name, turn in module.model(batch.to(device), shown).items()})
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _mean(turns: Tensor) -> Tensor:
    """(W, S, P) -> (1, S, 1, P)."""
    return turns.mean(0)[None, :, None]


def _filled(turns: Tensor, loud: Tensor) -> Tensor:
    """Where a window is silent, what the nearest other window says."""
    places = torch.nonzero(loud)[:, 0]
    nearest = (torch.arange(len(turns))[:, None] - places).abs().argmin(1)
    return turns[places[nearest]]


def _smooth(turns: Tensor) -> Tensor:
    """(W, S, P) -> (1, S, K = W + 2, P): averaged over neighbours; setting j stands at the middle of window j - 1."""
    width = SMOOTHING // 2
    shape = torch.minimum(torch.arange(1, SMOOTHING + 1), torch.arange(SMOOTHING, 0, -1)).to(turns)
    along = turns.permute(1, 2, 0).reshape(-1, 1, len(turns))
    smooth = F.conv1d(F.pad(along, (width + 1, width + 1), mode="replicate"), (shape / shape.sum())[None, None])
    return smooth.reshape(*turns.shape[1:], -1).permute(0, 2, 1)[None]


def _trim(wave: np.ndarray, rate: int, loudness: float | None) -> float:
    """Decibels that bring ``wave`` ((n,) or (C, n)) to ``loudness`` LUFS; 0 where it stays as it is."""
    if loudness is None:
        return 0.0
    measured = integrated_loudness(np.atleast_2d(wave), rate)
    return min(loudness - measured, LOUDEST_TRIM) if measured > SILENT else 0.0


def integrated_loudness(wave: np.ndarray, rate: int) -> float:
    """LUFS by ITU-R BS.1770-4 of (C, n); SILENT for what is shorter than a gating block or quieter than the absolute gate."""
    import warnings

    import pyloudnorm

    if wave.shape[1] < 0.4 * rate + 1:
        return SILENT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the logarithm of a recording in which every block is gated
        return max(float(pyloudnorm.Meter(rate).integrated_loudness(wave.T.astype(np.float64))), SILENT)


def _at_least(wave: Tensor, window: int) -> Tensor:
    """(N, n) -> (N, n or more): what is shorter than a window is heard in a loop."""
    times = -(-window // wave.shape[-1])
    return wave.repeat(1, times)[:, :window] if times > 1 else wave


def _loudest(wave: Tensor, window: int) -> Tensor:
    """The window of (2, n) with the most energy."""
    starts = window_starts(wave.shape[-1], window)
    return wave[:, max(starts, key=lambda s: float(wave[:, s : s + window].square().sum())) :][:, :window]


@torch.inference_mode()
def render(tracks: np.ndarray, preset: Preset) -> Rendered:
    """Tracks (N, n) at the preset's rate -> their mix, longer by the reverb. A function of these two alone, so a preset sounds the same."""
    tail = round(SECONDS * preset.layout.sample_rate)
    gains = torch.tensor([10 ** (trim / 20) for trim in preset.trims], dtype=torch.float32)
    wave = F.pad(torch.from_numpy(tracks) * gains[:, None], (0, tail))[None]
    return Console(preset.layout)(wave, preset.settings, preset.spacing)


def turned_down(mix: Tensor) -> float:
    """Decibels by which a mix has to be lowered so that it does not clip; 0 for most."""
    return max(0.0, 20 * float(torch.log10(mix.abs().max().clamp(min=1e-9) / HEADROOM)))


def clipped_runs(tracks: np.ndarray) -> int:
    """Places in (N, n) where three samples or more in a row are at full scale."""
    full = [np.abs(track) >= HEADROOM for track in tracks]
    return sum(int((run[2:] & run[1:-1] & run[:-2] & ~np.pad(run[:-3], (1, 0))).sum()) for run in full if len(run) > 2)
