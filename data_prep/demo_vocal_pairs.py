"""A small corpus of vocal pairs by one mixing engineer, who has a rule: what microphone and room did to a take is taken back.

Every take is coloured by a boom, a presence and an air band of its own. The engineer hears that, turns TAKEN_BACK of it the other way,
and adds a taste that is the same for all songs; JITTER is what nobody could foretell. So the settings follow from the voice, and a
model that hears only the raw take can find them. Files, truth and traps: ``demo_vocals``.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

from data_prep.demo_vocals import DEFAULT_TRACKS, STYLE, Drawn, Take, corpus, planned
from data_prep.effects import Band

RECIPE = "vocal_pairs_demo"  # what is prepared from it next
TAKEN_BACK = 0.8  # of a colour's decibels
JITTER = 0.3  # dB; standard deviation of what the engineer does without a reason
BOOM, PRESENCE, AIR = (-2.0, 4.0), (-13.0, 6.0), (-13.0, 6.0)  # dB that a take's colour has at least and at most
BOOM_HERTZ, PRESENCE_HERTZ, AIR_HERTZ = (250.0, 400.0), (3000.0, 4200.0), 7000.0
TASTE = (0.0, 1.0, 0.5)  # dB that the engineer adds in each of these bands

CORPUS = corpus("vocal_pairs", __name__)
CODE = CORPUS.code

__all__ = ["CODE", "DEFAULT_TRACKS", "RECIPE", "plan", "render"]


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` pairs into ``out``; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[Take]:
    return planned(tracks, seed, _drawn)


def _drawn(rng: random.Random) -> Drawn:
    colour = (
        Band("peak", _between(rng, BOOM_HERTZ), round(rng.uniform(*BOOM), 2), 1.0),
        Band("peak", _between(rng, PRESENCE_HERTZ), round(rng.uniform(*PRESENCE), 2), 0.6),
        Band("high_shelf", AIR_HERTZ, round(rng.uniform(*AIR), 2), 0.7),
    )
    answers = (
        dataclasses.replace(
            band,
            hertz=round(band.hertz * 2 ** rng.gauss(0, 0.05), 1),
            decibels=round(taste - TAKEN_BACK * band.decibels + rng.gauss(0, JITTER), 2),
        )
        for band, taste in zip(colour, TASTE, strict=True)
    )
    high_pass, *_ = STYLE.bands
    return colour, dataclasses.replace(
        STYLE,
        bands=(dataclasses.replace(high_pass, hertz=round(high_pass.hertz * 2 ** rng.gauss(0, 0.05), 1)), *answers),
        threshold=round(STYLE.threshold + rng.gauss(0, 0.5), 2),
        reverb_send=round(STYLE.reverb_send + rng.gauss(0, 0.5), 2),
        pan=round(rng.gauss(0, 0.02), 3),
    )


def _between(rng: random.Random, ends: tuple[float, float]) -> float:
    low, high = ends
    return round(low * (high / low) ** rng.random(), 1)
