"""A scripted judge of lights: do they rise with onsets, shine on beats, flicker? For tests, demos and an alarm, not for taste.

There are two of them. ``SCRIPTED`` hears onsets in the CQT's bands and stands in for people. ``HELD_OUT`` hears them in mel bands of the
waveform and weighs otherwise: nothing is ever trained on what it says, so it can tell whether a reward was learned or only exploited.

Shapes: B inputs, S outputs for each, 4 lights, T frames, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.precision import full_precision, kept_for_all
from models.cqtml.brightness import to_columns
from models.cqtml.music import band_onsets, ear_onsets, pulse
from models.cqtml.vit import PATCH
from models.features import CQT
from pipeline.train_module import Batch

FULL_SCALE = 32768.0  # of int16
STILL = 1e-4  # deviation below which a curve has no direction to agree in


@dataclass(frozen=True)
class Judge:
    """Weights of what it goes by."""

    onset: float
    beat: float
    flicker: float

    @full_precision
    def score(self, lights: Tensor, onsets: Tensor) -> Tensor:
        """(B, S, 4, T) brightness and (B, T) onset strength -> (B, S); higher is better, at most ``onset + beat``."""
        columns = F.avg_pool1d(lights.float().flatten(0, 2), PATCH, ceil_mode=True, count_include_pad=False)
        columns = columns.unflatten(0, lights.shape[:3])
        rise = columns.diff(dim=-1).clamp_min(0).sum(2)  # (B, S, C - 1)
        begins = smooth(to_columns(onsets))[:, None, 1:]
        beats = to_columns(pulse(onsets))[:, None]
        flicker = columns.diff(n=2, dim=-1).abs().mean((-1, -2))
        agreement = self.onset * correlation(smooth(rise), begins) + self.beat * correlation(columns.mean(2), beats)
        return agreement - self.flicker * flicker


SCRIPTED = Judge(onset=1.0, beat=0.5, flicker=2.0)
HELD_OUT = Judge(onset=1.0, beat=0.4, flicker=1.5)


def judged(lights: Tensor, batch: Batch) -> Tensor:
    """The scripted judge's scores (B, S) of (B, S, 4, T), for the batch's CQT."""
    return SCRIPTED.score(lights, band_onsets(batch["cqt"][:, 0]).mean(1))


def judged_by_ear(lights: Tensor, batch: Batch) -> Tensor:
    """The held-out judge's scores (B, S) of (B, S, 4, T), for the batch's waveform."""
    return HELD_OUT.score(lights, heard(batch))


def heard(batch: Batch) -> Tensor:
    """Onset strength (B, T) in the batch's waveform, int16 (B, n): no CQT is in it."""
    audio = batch["audio"].float() / FULL_SCALE
    return ear_onsets(audio, 1 + audio.shape[-1] // CQT.hop)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, over the last dimension; 0 where one of them does not move."""
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
    lengths = one.square().mean(-1).sqrt(), other.square().mean(-1).sqrt()
    moving = (lengths[0] > STILL) & (lengths[1] > STILL)
    return (one * other).mean(-1) / (lengths[0] * lengths[1]).clamp_min(STILL**2) * moving


def smooth(curve: Tensor) -> Tensor:
    """(..., C) -> the same, each point with half of its neighbours: an onset may fall on either side of a column's border."""
    flat = F.pad(curve.reshape(-1, 1, curve.shape[-1]), (1, 1), mode="replicate")
    return F.conv1d(flat, _neighbours(flat.dtype, flat.device)).reshape(curve.shape)


@kept_for_all
def _neighbours(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([[[0.25, 0.5, 0.25]]], dtype=dtype).to(device)
