"""Whether stems belong together: do their onsets fall together, do they play the same pitch classes?

Agreement is a correlation between two stems, averaged over their pairs; what it is worth is seen against stems of other draws or songs,
which have all that stems have but each other (``shuffled``).

Shapes: B samples, S stems, n audio samples, F feature frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.cd4mt.statistics import Figures, mel_spec
from models.features import CqtSpec, cqt, onset_strength
from models.metrics import correlation, mean

C2 = 65.40639132514966  # Hz; five octaves from here
UNPITCHED = "drums"
QUIET = 1e-4  # root mean square of a stem that says nothing


def onsets(wave: Tensor, sample_rate: int) -> Tensor:
    """(..., n) -> (..., F)."""
    return onset_strength(wave, mel_spec(sample_rate))


def chroma(wave: Tensor, sample_rate: int) -> Tensor:
    """(..., n) -> (..., 12 F): magnitudes of the pitch classes, frame by frame, each frame of norm 1 or silent."""
    spec = CqtSpec(sample_rate, bins=60, bins_per_octave=12, f_min=C2, hop=mel_spec(sample_rate).window)
    classes = cqt(wave, spec).abs().unflatten(-2, (-1, 12)).sum(-3)
    return torch.nn.functional.normalize(classes, dim=-2, eps=1e-3).flatten(-2)


def agreement(features: Tensor, audible: Tensor) -> Tensor:
    """(B, S, F) and bool (B, S) -> (B,): mean correlation of the pairs of audible stems; NaN where there is no pair."""
    pairs = torch.combinations(torch.arange(features.shape[1], device=features.device))
    both = audible[:, pairs].all(-1)
    found = correlation(features[:, pairs[:, 0]], features[:, pairs[:, 1]])
    return torch.where(both, found, 0).sum(-1) / both.sum(-1)


def agreement_with(stem: Tensor, given: Tensor, audible: Tensor) -> Tensor:
    """(B, F), (B, S, F) and bool (B, S) -> (B,): mean correlation of a stem with the audible ones that are given; NaN where none is."""
    found = correlation(stem[:, None], given)
    return torch.where(audible, found, 0).sum(-1) / audible.sum(-1)


def audible(wave: Tensor) -> Tensor:
    """(..., n) -> bool (...)."""
    return wave.square().mean(-1).sqrt() > QUIET


def shuffled(values: Tensor) -> Tensor:
    """(B, S, ...) with every stem but the first out of another sample, B / 2 further on: those that stand together are of one song."""
    count = len(values)
    moved = [values[:, i].roll((count // 2 + i) % count if i else 0, dims=0) for i in range(values.shape[1])]
    return torch.stack(moved, dim=1)


def together(name: str, waves: Tensor, stems: Sequence[str], sample_rate: int) -> Figures:
    """Agreement of stems in onsets and in pitch classes (without drums), and how much more it is than that of shuffled stems."""
    found: Figures = {}
    for what, (feature, kept) in features(stems).items():
        played = waves[:, kept]
        seen, heard = feature(played, sample_rate), audible(played)
        found |= _paired(f"{name}_{what}", agreement(seen, heard), agreement(shuffled(seen), shuffled(heard)))
    return found


def features(stems: Sequence[str]) -> dict[str, tuple[Callable[[Tensor, int], Tensor], list[int]]]:
    """By what is compared: a feature, and the numbers of the stems that have it."""
    pitched = [i for i, stem in enumerate(stems) if stem != UNPITCHED]
    return {"beat": (onsets, list(range(len(stems)))), "harmony": (chroma, pitched)}


def imputation(songs: Tensor, made: Tensor, stems: Sequence[str], sample_rate: int) -> Figures:
    """How much better a stem that was made to a song's other stems agrees with them than one that was made for another song.

    Args:
        songs: (B, S, n), what was given.
        made: (B, S, n), each stem as it was made to the other three.
    """
    figures: Figures = {}
    for what, (feature, kept) in features(stems).items():
        seen, heard, new = feature(songs, sample_rate), audible(songs), feature(made, sample_rate)
        pairs = []
        for number in kept:
            others = [i for i in kept if i != number]
            own, foreign = (
                agreement_with(one, seen[:, others], heard[:, others])
                for one in (new[:, number], new[:, number].roll(len(new) // 2, dims=0))
            )
            pairs.append((own, foreign))
        figures |= _paired(f"imputation_{what}", *(torch.cat(values) for values in zip(*pairs, strict=True)))
    return figures


def _paired(name: str, own: Tensor, foreign: Tensor) -> Figures:
    """Of agreements (B,) each; pairs of which one is not defined are left out."""
    both = own.isfinite() & foreign.isfinite()
    if both.sum() < 2:
        return {}
    return {f"{name}_agreement": mean(own[both]), f"{name}_above_shuffled": mean((own - foreign)[both])}
