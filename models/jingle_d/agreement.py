"""How much of the input's rhythm and of the target's harmony is in a mix, as a listener would compare them.

What is measured here is not what is minimised: onsets in other windows, harmony by a constant-Q transform.

Shapes: B mixes, n audio samples, L frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.features import C1, CqtSpec, MelSpec, cqt, onset_strength
from models.jingle_d import objectives
from models.metrics import correlation

ONSET_WINDOW, ONSET_HOP = 2048, 480  # samples: 20 ms apart
SLOWEST, FASTEST = 2.0, 0.25  # seconds of a beat: 30 and 240 a minute
LOG_GAIN = (
    10.0  # of the compression that lets quiet notes count (Müller, Fundamentals of Music Processing, Section 3.1.2.1)
)
QUIET = 1e-9  # mean magnitude of a signal that says nothing
PARTS = (
    "onset_correlation",
    "beat_correlation",
    "chroma_similarity",
    "chroma_correlation",
    "envelope_input",
    "envelope_target",
)


def chroma_spec(sample_rate: int) -> CqtSpec:
    """Six octaves from C2 on, ten frames a second."""
    return CqtSpec(sample_rate, bins=72, bins_per_octave=12, f_min=2 * C1, hop=sample_rate // 10)


@dataclass(frozen=True)
class Heard:
    """What is compared of waveforms (B, n): onset strength (B, L), pitch classes and their logarithms (B, 12, L), envelope."""

    onsets: Tensor
    periodicity: Tensor
    chroma: Tensor
    log_chroma: Tensor
    envelope: Tensor


def heard(wave: Tensor, mel: MelSpec) -> Heard:
    """Of waveforms (B, n) at the rate of ``mel``, whose rises are onsets."""
    onsets = onset_strength(wave, mel)
    magnitude = cqt(wave, chroma_spec(mel.sample_rate)).abs()
    relative = magnitude / magnitude.mean((-1, -2), keepdim=True).clamp_min(QUIET)
    logarithmic = (1 + LOG_GAIN * relative).log()
    return Heard(
        onsets,
        _periodicity(onsets, mel),
        pitch_classes(magnitude),
        pitch_classes(logarithmic),
        objectives.envelope(wave),
    )


def agreement(mix: Heard, given: Heard, target: Heard) -> dict[str, Tensor]:
    """Of B mixes with their input and their target, (B,) each.

    ``onset_correlation``: of onset strength with the input's. ``beat_correlation``: of its autocorrelation, so of the tempo, wherever the
    beats lie. ``chroma_similarity``: mean cosine of pitch classes with the target's (unrelated music has some 0.7).
    ``chroma_correlation``: the same of logarithmic ones around their mean (unrelated music has 0). ``envelope_...``: correlation of
    envelopes.
    """
    notes = (x.log_chroma.transpose(-1, -2) for x in (mix, target))
    return {
        "onset_correlation": correlation(mix.onsets, given.onsets),
        "beat_correlation": correlation(mix.periodicity, given.periodicity),
        "chroma_similarity": torch.nn.functional.cosine_similarity(mix.chroma, target.chroma, dim=-2).mean(-1),
        "chroma_correlation": correlation(*notes).mean(-1),
        "envelope_input": correlation(mix.envelope, given.envelope),
        "envelope_target": correlation(mix.envelope, target.envelope),
    }


def pitch_classes(semitones: Tensor) -> Tensor:
    """(B, octaves * 12, L) -> (B, 12, L), summed over octaves."""
    return semitones.unflatten(-2, (-1, 12)).sum(-3)


def _periodicity(onsets: Tensor, mel: MelSpec) -> Tensor:
    """(B, L) -> (B, lags): autocorrelation at the lags that a beat may have, as far as the signal reaches."""
    rate = mel.sample_rate / mel.hop
    centred = onsets - onsets.mean(-1, keepdim=True)
    length = centred.shape[-1]
    power = torch.fft.rfft(centred, 2 * length).abs().square()
    last = min(round(SLOWEST * rate), length - 1)
    return torch.fft.irfft(power)[..., round(FASTEST * rate) : last + 1]
