"""How much of the input's rhythm and of the target's harmony is in a mix, as a listener would compare them.

What is measured here is not what is minimised: onsets in other windows, harmony by a constant-Q transform.

Shapes: B mixes, n audio samples, L frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.features import C1, CqtSpec, MelSpec, cqt, cqt_chroma, onset_strength
from models.jingle_d.objectives import envelope
from models.metrics import correlation

ONSET_WINDOW, ONSET_HOP = 2048, 480  # samples: 20 ms apart
SLOWEST, FASTEST = 2.0, 0.25  # seconds of a beat: 30 and 240 a minute
LOG_GAIN = (
    10.0  # of the compression that lets quiet notes count (Müller, Fundamentals of Music Processing, Section 3.1.2.1)
)
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


def agreement(mix: Tensor, given: Tensor, target: Tensor, mel: MelSpec) -> dict[str, Tensor]:
    """Waveforms (B, n) -> (B,) each.

    ``onset_correlation``: of onset strength with the input's. ``beat_correlation``: of its autocorrelation, so of the tempo, wherever the
    beats lie. ``chroma_similarity``: mean cosine of pitch classes with the target's (unrelated music has some 0.7).
    ``chroma_correlation``: the same of logarithmic ones around their mean (unrelated music has 0). ``envelope_...``: correlation of
    envelopes.
    """
    spec = chroma_spec(mel.sample_rate)
    onsets = [onset_strength(wave, mel) for wave in (mix, given)]
    classes = [cqt_chroma(wave, spec) for wave in (mix, target)]
    notes = [_log_chroma(wave, spec).transpose(-1, -2) for wave in (mix, target)]
    return {
        "onset_correlation": correlation(*onsets),
        "beat_correlation": correlation(*(_periodicity(x, mel) for x in onsets)),
        "chroma_similarity": torch.nn.functional.cosine_similarity(*classes, dim=-2).mean(-1),
        "chroma_correlation": correlation(*notes).mean(-1),
        "envelope_input": correlation(envelope(mix), envelope(given)),
        "envelope_target": correlation(envelope(mix), envelope(target)),
    }


def _periodicity(onsets: Tensor, mel: MelSpec) -> Tensor:
    """(B, L) -> (B, lags): autocorrelation at the lags that a beat may have, as far as the signal reaches."""
    rate = mel.sample_rate / mel.hop
    centred = onsets - onsets.mean(-1, keepdim=True)
    length = centred.shape[-1]
    power = torch.fft.rfft(centred, 2 * length).abs().square()
    last = min(round(SLOWEST * rate), length - 1)
    return torch.fft.irfft(power)[..., round(FASTEST * rate) : last + 1]


def _log_chroma(wave: Tensor, spec: CqtSpec) -> Tensor:
    """(B, n) -> (B, 12, L): of magnitudes relative to their mean."""
    magnitude = cqt(wave, spec).abs()
    relative = magnitude / magnitude.mean((-1, -2), keepdim=True).clamp_min(1e-9)
    return (1 + LOG_GAIN * relative).log().unflatten(-2, (-1, 12)).sum(-3)
