"""Whether stems belong together: do their onsets fall together, do they play the same pitch classes?

Agreement is a correlation between two stems, averaged over their pairs; what it is worth is seen against stems of other draws or songs,
which have all that stems have but each other (``shuffled``).

Shapes: B samples, S stems, n audio samples, F feature frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.cd4mt.sampling import GIVEN_STEPS, Known
from models.cd4mt.showing import to_audio
from models.cd4mt.train_module import TrainModule
from models.features import CqtSpec, MelSpec, cqt, log_mel
from models.metrics import Figure, mean

Figures = dict[str, Figure | float]

ONSET = MelSpec(sample_rate=44100, bands=32, window=2048, hop=512)
CHROMA = CqtSpec(sample_rate=44100, bins=60, bins_per_octave=12, f_min=65.40639132514966, hop=2048)  # C2 to B6
UNPITCHED = "drums"
QUIET = 1e-4  # root mean square of a stem that says nothing


def onset_strength(wave: Tensor) -> Tensor:
    """(..., n) -> (..., F): how much the log-mel rises from a frame to the next, a mean over its bands (spectral flux)."""
    return log_mel(wave, ONSET).diff(dim=-1).clamp_min(0).mean(-2)


def chroma(wave: Tensor) -> Tensor:
    """(..., n) -> (..., 12 F): magnitudes of the pitch classes, frame by frame, each frame of norm 1 or silent."""
    classes = cqt(wave, CHROMA).abs().unflatten(-2, (-1, 12)).sum(-3)
    return torch.nn.functional.normalize(classes, dim=-2, eps=1e-3).flatten(-2)


def agreement(features: Tensor, audible: Tensor) -> Tensor:
    """(B, S, F) and bool (B, S) -> (B,): mean correlation of the pairs of audible stems; NaN where there is no pair."""
    pairs = torch.combinations(torch.arange(features.shape[1], device=features.device))
    both = audible[:, pairs].all(-1)
    found = _correlation(features[:, pairs[:, 0]], features[:, pairs[:, 1]])
    return torch.where(both, found, 0).sum(-1) / both.sum(-1)


def agreement_with(stem: Tensor, given: Tensor, audible: Tensor) -> Tensor:
    """(B, F), (B, S, F) and bool (B, S) -> (B,): mean correlation of a stem with the audible ones that are given; NaN where none is."""
    found = _correlation(stem[:, None], given)
    return torch.where(audible, found, 0).sum(-1) / audible.sum(-1)


def audible(wave: Tensor) -> Tensor:
    """(..., n) -> bool (...)."""
    return wave.square().mean(-1).sqrt() > QUIET


def shuffled(values: Tensor) -> Tensor:
    """(B, S, ...) with every stem but the first out of another sample, B / 2 further on: those that stand together are of one song."""
    count = len(values)
    moved = [values[:, i].roll((count // 2 + i) % count if i else 0, dims=0) for i in range(values.shape[1])]
    return torch.stack(moved, dim=1)


def together(name: str, waves: Tensor, stems: Sequence[str]) -> Figures:
    """Agreement of stems in onsets and in pitch classes (without drums), and how much more it is than that of shuffled stems."""
    pitched = waves[:, [i for i, stem in enumerate(stems) if stem != UNPITCHED]]
    found: Figures = {}
    for what, played, feature in (("beat", waves, onset_strength), ("harmony", pitched, chroma)):
        features, heard = feature(played), audible(played)
        own = agreement(features, heard)
        foreign = agreement(shuffled(features), shuffled(heard))
        found |= _paired(f"{name}_{what}", own, foreign)
    return found


def imputation(module: TrainModule, songs: Tensor) -> Figures:
    """Each stem made to the other three: how much better it agrees with them than one that was made for another song does.

    Args:
        songs: (B, S, C, L) latents of deviation sigma_data.
    """
    given, steps = to_audio(module, songs).cpu(), None if module.model_config.objective == "edm" else GIVEN_STEPS
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for number, stem in enumerate(module.stems):
        mask = torch.ones(*songs.shape[:2], 1, songs.shape[-1], dtype=torch.bool, device=songs.device)
        mask[:, number] = False
        new = module.draw(torch.arange(len(songs)), songs.shape[-1], steps, Known(songs, mask))
        made = to_audio(module, new)[:, number].cpu()
        for what, feature in (("beat", onset_strength), ("harmony", chroma)):
            pitched = what == "harmony"
            if pitched and stem == UNPITCHED:
                continue
            others = [i for i, n in enumerate(module.stems) if i != number and not (pitched and n == UNPITCHED)]
            features, heard = feature(given[:, others]), audible(given[:, others])
            foreign = made.roll(len(made) // 2, dims=0)
            pair = (agreement_with(feature(one), features, heard) for one in (made, foreign))
            found.setdefault(what, []).append((next(pair), next(pair)))
    figures: Figures = {}
    for what, pairs in found.items():
        figures |= _paired(f"imputation_{what}", *(torch.cat(values) for values in zip(*pairs, strict=True)))
    return figures


def _paired(name: str, own: Tensor, foreign: Tensor) -> Figures:
    """Of agreements (B,) each; pairs of which one is not defined are left out."""
    both = own.isfinite() & foreign.isfinite()
    if both.sum() < 2:
        return {}
    return {f"{name}_agreement": mean(own[both]), f"{name}_above_shuffled": mean((own - foreign)[both])}


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    one, other = (x - x.mean(-1, keepdim=True) for x in (one, other))
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)).clamp_min(1e-9)
