"""What a trained engineer is held against: the console optimised for one song (the ceiling), and one preset for all songs.

Shapes: B segments of a song, N tracks, n samples, P knobs of a section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.blocks.console.settings import Settings, from_turns, to_turns
from models.diff_mst.data import View
from models.diff_mst.objectives import distances, weighted
from models.diff_mst.train_module import TrainModule

INSIDE = 0.01  # of a knob's way, from its ends: where a descent may begin


@dataclass(frozen=True)
class Recipe:
    """How a console is optimised: Adam on the knobs' positions, ``segments`` of a song at once; ``songs`` make the mean preset."""

    segments: int = 2
    steps: int = 40
    lr: float = 0.08
    songs: int = 3
    judged: int = 64  # samples of the held-out split at most


def optimised(module: TrainModule, seen: View, start: Settings, recipe: Recipe) -> Settings:
    """One setting (1, S, 1, P) for all segments of ``seen``, by descent from ``start``; the best that was met. What descends is the run's
    own loss and, where a run is trained without it, the multi-resolution STFT: that is what ceilings are held up as."""
    sections, own = module.layout.sections, module.model_config.weights
    weights = own.model_copy(update={"stft": own.stft or 1.0})
    logits = {
        name: to_turns(start[name], section).clamp(INSIDE, 1 - INSIDE).logit().requires_grad_()
        for name, section in sections.items()
    }
    optimizer = torch.optim.Adam(logits.values(), lr=recipe.lr)
    best, least = start, float("inf")
    for _ in range(recipe.steps):
        settings = {name: from_turns(logits[name].sigmoid(), section) for name, section in sections.items()}
        mix = module.console(seen.tracks, _for_all(settings, len(seen.tracks))).mix
        found = distances(module.judged(mix), module.judged(seen.like), module.sample_rate, weights)
        loss = weighted(found, weights).mean()
        if (now := float(loss.detach())) < least:
            best, least = {name: values.detach().clone() for name, values in settings.items()}, now
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


def _for_all(settings: Settings, batch: int) -> Settings:
    return {name: values.expand(batch, -1, -1, -1) for name, values in settings.items()}


def averaged(module: TrainModule, found: Sequence[Settings]) -> Settings:
    """The mean of several settings, knob by knob, in the knobs' positions."""
    return {
        name: from_turns(
            torch.cat([to_turns(settings[name], section) for settings in found]).mean(0, keepdim=True), section
        )
        for name, section in module.layout.sections.items()
    }


def loudness_matched(tracks: Tensor, lufs: Tensor, wanted: Tensor) -> Tensor:
    """Tracks (B, N, n) summed, on both sides, (B, 2, n), brought from ``lufs`` (B,) of the mono sum to ``wanted`` LUFS.

    Two equal channels are 3 dB louder than one of them (ITU-R BS.1770-4 adds powers).
    """
    gain = 10 ** ((wanted - lufs - 10 * torch.log10(torch.tensor(2.0))) / 20)
    return (tracks.sum(1) * gain[:, None])[:, None].expand(-1, 2, -1)
