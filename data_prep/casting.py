"""Who plays what, and how high: instruments and transpositions dealt so that every instrument plays every pitch equally often.

Chorales repeat their key's notes, so in a small corpus chance alone leaves some notes of some instrument unheard. Each track in turn
takes the casting that leaves the corpus so far most even.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import numpy as np

from data_prep.chorales import Chorale, transposed

SHIFTS = range(-3, 4)  # semitones


@dataclass
class Casting:
    """Seconds of each of ``instruments`` at each MIDI note from ``low`` to ``high``, and the choice that evens them out."""

    instruments: tuple[str, ...]
    low: int
    high: int
    seconds: np.ndarray = field(init=False)  # (instruments, pitches)

    def __post_init__(self) -> None:
        self.seconds = np.zeros((len(self.instruments), self.high - self.low + 1))

    def cast(self, rng: random.Random, chorale: Chorale) -> tuple[Chorale, tuple[str, ...]]:
        """The chorale, transposed by a few semitones, and an instrument for each voice, all different."""
        choices = np.array(list(itertools.permutations(range(len(self.instruments)), len(chorale.voices))))
        rows = np.arange(len(choices))[:, None]
        best_cost, best = float("inf"), (0, choices[0], self.seconds)
        for shift in SHIFTS:
            totals = np.repeat(self.seconds[None], len(choices), axis=0)
            totals[rows, choices] += self._heard(chorale, shift)
            # Unevenness alone: how the seconds spread over the table, not how many there are; chance decides between equals
            cost = totals.var(axis=(1, 2)) / np.maximum(totals.mean(axis=(1, 2)), 1e-9) ** 2
            cost += [1e-6 * rng.random() for _ in rows]
            first = int(cost.argmin())
            if cost[first] < best_cost:
                best_cost, best = float(cost[first]), (shift, choices[first], totals[first])
        shift, players, self.seconds = best
        return transposed(chorale, shift), tuple(self.instruments[player] for player in players)

    def _heard(self, chorale: Chorale, shift: int) -> np.ndarray:
        """Seconds of each voice at each pitch, (voices, pitches)."""
        seconds = np.zeros((len(chorale.voices), self.high - self.low + 1))
        for row, notes in zip(seconds, chorale.voices, strict=True):
            for note in notes:
                if self.low <= note.pitch + shift <= self.high:
                    row[note.pitch + shift - self.low] += note.end - note.start
        return seconds
