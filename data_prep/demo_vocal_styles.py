"""A small corpus of vocal pairs in which every song is mixed in a style of its own: nothing in the voice tells it, only the mix does.

For training with a reference (``diff_mst_demo_reference``): who is shown the wrong reference must mix worse. Settings are drawn
independently, over most of what a console can do. Files, truth and traps: ``demo_vocals``.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

from data_prep.demo_vocals import DEFAULT_TRACKS, STYLE, Drawn, Take, corpus, planned
from data_prep.effects import Band

DATASET = "vocal_pairs"  # as which it is prepared
RECIPE = "vocal_pairs_styles_demo"
BODY, PRESENCE, AIR = (-6.0, 6.0), (-9.0, 9.0), (-9.0, 9.0)  # dB
SEND, MAKE_UP, PAN = (-34.0, -6.0), (0.0, 6.0), (-0.7, 0.7)

CORPUS = corpus("vocal_styles", __name__)
CODE = CORPUS.code

__all__ = ["CODE", "DATASET", "DEFAULT_TRACKS", "RECIPE", "plan", "render"]


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` pairs into ``out``; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[Take]:
    return planned(tracks, seed, _drawn)


def _drawn(rng: random.Random) -> Drawn:
    bands = (
        STYLE.bands[0],
        Band("peak", 320.0, round(rng.uniform(*BODY), 2), 0.8),
        Band("peak", 3500.0, round(rng.uniform(*PRESENCE), 2), 0.6),
        Band("high_shelf", 7000.0, round(rng.uniform(*AIR), 2), 0.7),
    )
    return (), dataclasses.replace(
        STYLE,
        bands=bands,
        make_up=round(rng.uniform(*MAKE_UP), 2),
        reverb_send=round(rng.uniform(*SEND), 2),
        pan=round(rng.uniform(*PAN), 3),
    )
