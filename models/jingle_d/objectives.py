"""The terms of the loss: of the decoded audio, of the masks, of the adversaries. Each is a mean over the batch.

Shapes: B samples, C latent channels, L frames, n audio samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.blocks.precision import kept_for_all
from models.features import MelSpec, onset_strength, stft_chroma
from models.losses import multi_resolution_stft
from models.metrics import correlation

SEGMENTS = 250  # of an envelope
TINY = 1e-8
DRIFT = 1e-3
ONSET_WINDOW, ONSET_HOP = 1024, 320  # samples; evaluation looks at others
CHROMA_WINDOW = 4096
STFT_WINDOWS = (512, 2048)

AUDIO_TERMS = ("rmse_input", "rmse_target", "envelope", "rhythm", "harmony", "spectrum")


def audio_terms(
    names: Sequence[str], out: Tensor, given: Tensor, target: Tensor, heard: Tensor, mel: MelSpec
) -> dict[str, Tensor]:
    """Those of AUDIO_TERMS that ``names`` names, of waveforms (B, n): the output, both recordings, and what the masks let through."""
    terms = {
        "rmse_input": lambda: rmse(out, given),
        "rmse_target": lambda: rmse(out, target),
        "envelope": lambda: envelope_correlation(out, given) + envelope_correlation(out, target),
        "rhythm": lambda: (1 - correlation(onset_strength(out, mel), onset_strength(given, mel))).mean(),
        "harmony": lambda: (1 - harmony(out, target, mel.sample_rate)).mean(),
        "spectrum": lambda: multi_resolution_stft(out[:, None], heard[:, None], STFT_WINDOWS).mean(),
    }
    return {name: terms[name]() for name in names}


def rmse(one: Tensor, other: Tensor) -> Tensor:
    """(B, n) each: the root mean square of the difference, a mean over samples."""
    return (one - other).square().mean(-1).clamp_min(TINY).sqrt().mean()


def envelope_correlation(one: Tensor, other: Tensor) -> Tensor:
    """rho^2 of the envelopes: the greatest magnitudes of SEGMENTS equal pieces (fewer, where there are not as many samples).

    The square is bounded and flat at zero. -ln(1 - |rho|) has no bound, and its gradient none either where an output is one of the
    recordings: norms went up to a million.
    """
    return correlation(*(envelope(wave) for wave in (one, other))).square().mean()


def envelope(wave: Tensor) -> Tensor:
    """(B, n) -> (B, SEGMENTS)."""
    return wave.abs()[..., _pieces(wave.shape[-1], wave.device)].amax(-1)


@kept_for_all
def _pieces(samples: int, device: torch.device) -> Tensor:
    """(SEGMENTS, m): the samples of each piece, its last one again where it has fewer; pieces overlap by one where they do not divide.

    As ``adaptive_max_pool1d``, whose gradient has no deterministic form on a GPU.
    """
    number = torch.arange(min(SEGMENTS, samples))
    first, last = number * samples // len(number), -(-(number + 1) * samples // len(number)) - 1
    length = torch.arange(int((last - first).max()) + 1)
    return (first[:, None] + length).minimum(last[:, None]).to(device)


def harmony(one: Tensor, other: Tensor, sample_rate: int) -> Tensor:
    """(B, n) each -> (B,): correlation of pitch classes, a mean over frames; 0 for what has nothing to do with each other."""
    chroma = (stft_chroma(wave, sample_rate, CHROMA_WINDOW).transpose(-1, -2) for wave in (one, other))
    return correlation(*chroma).mean(-1)


def mask_terms(first: Tensor, second: Tensor, floor: float) -> dict[str, Tensor]:
    """Of two masks (B, C, L); the first three make up the mask regularisation."""
    overlap = (first * second).mean((1, 2))
    shares = first.mean((1, 2)), second.mean((1, 2))
    moving = sum(functional.relu(floor - mask.var(-1).mean(1)) for mask in (first, second))
    return {
        "mask_overlap": overlap.mean(),
        "mask_coverage": (first + second - 1).square().mean(),
        "mask_variance": torch.as_tensor(moving).mean() / 2,
        "mask_balance": torch.stack([(share - 0.5).square() for share in shares]).sum(0).mean(),
        "mask_disjoint": (overlap / (shares[0] * shares[1]).clamp_min(TINY)).mean(),
    }


def told_apart(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """The hinge loss of a discriminator of several scales (2210.13438, Section 3.4), from its logits.

    Within the margins it does not care where zero is; DRIFT keeps it in place (Karras et al. 1710.10196, Appendix A.1).
    """
    each = [
        functional.relu(1 - r).mean() + functional.relu(1 + m).mean() + DRIFT * r.square().mean()
        for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(each).mean()


def taken_for_real(made: Sequence[Tensor]) -> Tensor:
    """What the generator minimises against it; without the hinge of Eq. (1) of 2210.13438, so that it is pulled on when it is believed
    (Lim and Ye 1705.02894)."""
    return -torch.stack([m.mean() for m in made]).mean()


def features_apart(real: Sequence[Sequence[Tensor]], made: Sequence[Sequence[Tensor]]) -> Tensor:
    """Feature matching: L1 distance of a discriminator's features (B, channels, ...), relative to the real ones' size.

    Of their means over time and frequency (Salimans et al. 1606.03498, Section 3.1): no recording is what the output should be, so
    there is nothing to compare it with place by place, as 2210.13438, Eq. (2) does.
    """
    each = []
    for ours, theirs in zip(made, real, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            wanted = other.detach().flatten(2).mean(-1)
            size = wanted.abs().mean(1, keepdim=True).clamp_min(TINY)
            each.append(((one.flatten(2).mean(-1) - wanted).abs() / size).mean())
    return torch.stack(each).mean()


def style_learned(given: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of style logits (B, 2) for inputs (class 0) and targets (class 1)."""
    return -torch.cat([given.log_softmax(-1)[:, 0], target.log_softmax(-1)[:, 1]]).mean()


def style_ambiguous(made: Tensor) -> Tensor:
    """Cross-entropy to both styles alike, least where neither is told (Elgammal et al. 1706.07068, Eq. (2)); 0 there."""
    log_shares = made.log_softmax(-1)
    return (-log_shares.mean(-1)).mean() - math.log(2)
