"""A song of ``band`` played by General MIDI instruments: who plays a part, how loud, and all of them together."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.band import Song
from data_prep.chorales import Note
from data_prep.synth import Player

PROGRAMS = {"piano": (0, 1, 4), "guitar": (24, 25, 27), "bass": (32, 33, 34), "drums": (0,), "lead": (73, 65, 40)}
LEVELS = {"piano": 0.05, "guitar": 0.05, "bass": 0.07, "drums": 0.08, "lead": 0.04}  # RMS, before a mixture's gain
PEAK = 0.89  # of a mixture: -1 dBFS
PLAYING = ("data_prep.performance", "data_prep.band", "data_prep.chorales:Note", "data_prep.synth:Player")  # code
TAIL = 0.6  # seconds after the last release


def cast(rng: random.Random) -> dict[str, int]:
    """A program for every part."""
    return {part: rng.choice(programs) for part, programs in PROGRAMS.items()}


def play(player: Player, part: str, program: int, notes: Sequence[Note], seconds: float) -> np.ndarray:
    """(n,) float64 of one part at its level; zeros where it has no notes."""
    wave = player.play(notes, program, seconds, drums=part == "drums").astype(np.float64)
    level = float(np.sqrt(np.mean(wave**2)))
    return LEVELS[part] / level * wave if level else wave


def play_song(player: Player, song: Song, programs: Mapping[str, int]) -> np.ndarray:
    """(n,) float64 of all parts that ``programs`` names, with a peak of PEAK."""
    seconds = song.seconds + TAIL
    mixture = np.sum([play(player, part, program, song.parts[part], seconds) for part, program in programs.items()], 0)
    return PEAK / float(np.abs(mixture).max()) * mixture
