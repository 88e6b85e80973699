"""What is compared: audio features of a stereo mix (Diff-MST, Section 3.4), and the multi-resolution STFT where a target is aligned.

Shapes: B samples, n samples of a stereo waveform (B, 2, n).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.blocks.precision import full_precision, kept_for_all
from models.diff_mst.config import Weights
from models.losses import magnitudes, multi_resolution_octaves, multi_resolution_stft

FEATURES = ("rms", "crest", "width", "imbalance", "bark")
BARK_WINDOW = 32768
# Hz: edges of the 24 critical bands (Zwicker, JASA 33, 1961)
BARK_EDGES = (
    0, 100, 200, 300, 400, 510, 630, 770, 920, 1080, 1270, 1480, 1720, 2000, 2320, 2700, 3150, 3700, 4400, 5300, 6400, 7700, 9500,
    12000, 15500,
)  # fmt: skip
QUIET = 1e-4  # amplitude, -80 dB of full scale: what lies below is not told apart


@full_precision
def audio_features(mix: Tensor, sample_rate: int) -> dict[str, Tensor]:
    """By name: ``rms`` (B, 2) of each channel; ``crest`` (B, 2) factor in dB; ``width`` (B, 1), energy of the side over that of the middle;
    ``imbalance`` (B, 1), -1 where all is left, 1 where all is right; ``bark`` (B, 48), natural logarithm of the mean magnitude in each
    critical band of middle and side."""
    power = mix.square().mean(-1)
    rms = power.clamp(min=QUIET**2).sqrt()
    middle, side = mix.sum(1), mix[:, 0] - mix[:, 1]
    width = side.square().mean(-1) / middle.square().mean(-1).clamp(min=QUIET**2)
    imbalance = (power[:, 1] - power[:, 0]) / power.sum(1).clamp(min=QUIET**2)
    return {
        "rms": rms,
        "crest": 20 * (mix.abs().amax(-1).clamp(min=QUIET) / rms).log10(),
        "width": width[:, None],
        "imbalance": imbalance[:, None],
        "bark": bark_spectrum(torch.stack([middle, side], dim=1) / 2, sample_rate).flatten(1),
    }


def bark_spectrum(wave: Tensor, sample_rate: int) -> Tensor:
    """(..., n) -> (..., 24): log of the mean magnitude in each critical band; a full-scale sine has magnitude 1/2."""
    short = BARK_WINDOW - wave.shape[-1]
    if short > 0:
        wave = torch.nn.functional.pad(wave, (0, short))
    mean = magnitudes(wave, BARK_WINDOW, BARK_WINDOW // 2).mean(-2) / (BARK_WINDOW / 2)
    return (mean @ _bands(sample_rate, wave.dtype, wave.device)).clamp(min=QUIET / 10).log()


@kept_for_all
def _bands(sample_rate: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F, 24): each column averages over its band."""
    hertz = torch.fft.rfftfreq(BARK_WINDOW, 1 / sample_rate)[:, None]
    edges = torch.tensor(BARK_EDGES)
    inside = ((hertz >= edges[:-1]) & (hertz < edges[1:])).to(dtype)
    return (inside / inside.sum(0)).to(device)


def feature_distances(mix: Tensor, like: Tensor, sample_rate: int) -> dict[str, Tensor]:
    """Mean squared difference of each audio feature, (B,) by name; the two may differ in length."""
    ours, theirs = audio_features(mix, sample_rate), audio_features(like, sample_rate)
    return {name: (ours[name] - theirs[name]).square().mean(-1) for name in FEATURES}


def distances(mix: Tensor, like: Tensor, sample_rate: int, weights: Weights) -> dict[str, Tensor]:
    """Everything with a weight, (B,) by name, unweighted; ``stft`` and ``octaves`` need ``like`` to be aligned with ``mix``."""
    found = {"stft": multi_resolution_stft(mix, like)} if weights.stft else {}
    if weights.octaves:
        found["octaves"] = multi_resolution_octaves(mix, like, sample_rate)
    return found | feature_distances(mix, like, sample_rate)


def weighted(found: dict[str, Tensor], weights: Weights) -> Tensor:
    """(B,): the sum of all distances by their weights. What has none is only told, so no gradient goes through it."""
    heavy = {name: value for name, value in found.items() if getattr(weights, name)} or found
    return torch.stack([getattr(weights, name) * value for name, value in heavy.items()]).sum(0)
