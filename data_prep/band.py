"""Songs of our own for a small band: common chord progressions, a beat, and parts that agree with each other; seeded.

Four beats a bar. The kick drum and the bass share their rhythm, guitar and piano play the bar's chord, and the lead moves by steps
through the chord's tones. A verse and a chorus of four chords each take turns; every eighth bar has a fill and the next one a crash.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from data_prep.chorales import SCALES, Note

BAR = 4  # beats
SECTION = 8  # bars
PARTS = ("bass", "drums", "guitar", "piano", "lead")
PROGRESSIONS = {  # scale degrees, a chord a bar
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 0, 4), (0, 2, 3, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 6, 2), (0, 5, 3, 4)),
}
GROOVES = (  # beats of the bar on which kick and bass sound
    (0.0, 2.0),
    (0.0, 1.5, 2.0),
    (0.0, 2.5),
    (0.0, 0.75, 2.0, 2.75),
    (0.0, 1.0, 2.0, 3.0),
)
KICK, SNARE, HAT, OPEN_HAT, CRASH, LOW_TOM, MID_TOM = 36, 38, 42, 46, 49, 45, 47
PRE_ROLL = 0.05  # seconds before the first beat


@dataclass(frozen=True)
class Song:
    """``tempo`` in quarter notes a minute, ``seconds`` to the last release, ``tonic`` a pitch class; notes by part, sorted."""

    tempo: float
    tonic: int
    mode: str
    seconds: float
    parts: dict[str, tuple[Note, ...]]


def compose(rng: random.Random, bars: int, tonic: int | None = None, tempo: float | None = None) -> Song:
    """A song of ``bars`` bars; key and tempo are drawn where they are not given."""
    mode = rng.choice(("major", "minor"))
    tonic = rng.randrange(12) if tonic is None else tonic
    tempo = rng.uniform(80, 140) if tempo is None else tempo
    sections = [(rng.choice(PROGRESSIONS[mode]), rng.choice(GROOVES), rng.random() < 0.5) for _ in range(2)]
    writer = _Writer(rng, 60 / tempo)
    lead = 4  # scale steps above the tonic
    for bar in range(bars):
        progression, groove, arpeggio = sections[bar // SECTION % 2]
        degree = progression[bar % len(progression)]
        chord = [_pitch(tonic, mode, degree + step) for step in (0, 2, 4)]
        writer.drums(bar, groove, fill=bar % SECTION == SECTION - 1, crash=bar % SECTION == 0)
        writer.bass(bar, groove, chord)
        writer.guitar(bar, chord)
        writer.piano(bar, chord, arpeggio)
        lead = writer.lead(bar, tonic, mode, degree, lead)
    parts = {part: tuple(sorted(writer.notes[part], key=lambda n: (n.start, n.pitch))) for part in PARTS}
    return Song(tempo, tonic, mode, PRE_ROLL + bars * BAR * 60 / tempo, parts)


def _pitch(tonic: int, mode: str, step: int) -> int:
    """The MIDI number ``step`` scale steps above the tonic that lies between C2 and B2."""
    octave, degree = divmod(step, 7)
    return 36 + tonic + 12 * octave + SCALES[mode][degree]


class _Writer:
    """Notes by part; a player's small unevenness in time and force comes from ``rng``."""

    def __init__(self, rng: random.Random, beat: float) -> None:
        self.rng, self.beat = rng, beat
        self.notes: dict[str, list[Note]] = {part: [] for part in PARTS}

    def add(self, part: str, bar: int, at: float, beats: float, pitch: int, velocity: int) -> None:
        start = PRE_ROLL + (bar * BAR + at) * self.beat + self.rng.uniform(0.0, 0.008)
        force = min(127, max(1, velocity + self.rng.randint(-8, 8)))
        self.notes[part].append(Note(start, start + beats * self.beat - 0.015, pitch, force))

    def drums(self, bar: int, groove: tuple[float, ...], fill: bool, crash: bool) -> None:
        for at in groove:
            self.add("drums", bar, at, 0.25, KICK, 112)
        for eighth in range(8):
            at = eighth / 2
            if fill and at >= 2:
                self.add("drums", bar, at, 0.25, (SNARE, MID_TOM, LOW_TOM, LOW_TOM)[eighth - 4], 104)
            else:
                self.add("drums", bar, at, 0.25, OPEN_HAT if eighth == 7 else HAT, 90 if eighth % 2 == 0 else 64)
        for at in (1.0,) if fill else (1.0, 3.0):
            self.add("drums", bar, at, 0.25, SNARE, 108)
        if crash:
            self.add("drums", bar, 0.0, 1.0, CRASH, 108)

    def bass(self, bar: int, groove: tuple[float, ...], chord: list[int]) -> None:
        root = chord[0] if chord[0] < 48 else chord[0] - 12
        for at, until in zip(groove, (*groove[1:], 4.0), strict=True):
            fifth = at >= 2 and self.rng.random() < 0.3
            self.add("bass", bar, at, min(until - at, 1.75), root + 7 * fifth, 104)

    def guitar(self, bar: int, chord: list[int]) -> None:
        voicing = sorted(12 + pitch for pitch in (*chord, chord[0] + 12))
        for at in (0.0, 1.0, 1.5, 2.5, 3.0):
            for string, pitch in enumerate(voicing):
                self.add("guitar", bar, at + 0.02 * string, 0.45, pitch, 84)

    def piano(self, bar: int, chord: list[int], arpeggio: bool) -> None:
        voicing = sorted(pitch + 24 if pitch < 48 else pitch + 12 for pitch in chord)
        if arpeggio:
            for eighth in range(8):
                self.add("piano", bar, eighth / 2, 0.5, voicing[(0, 1, 2, 1)[eighth % 4]], 80)
        else:
            for at, beats in ((0.0, 2.0), (2.0, 2.0)):
                for pitch in voicing:
                    self.add("piano", bar, at, beats, pitch, 84)

    def lead(self, bar: int, tonic: int, mode: str, degree: int, step: int) -> int:
        """A phrase of one bar from scale step ``step``, on strong beats a tone of the chord; the step it ends on."""
        at = 0.0
        while at < BAR:
            beats = min(self.rng.choice((0.5, 1.0, 1.0, 2.0)), BAR - at)
            step = min(11, max(0, step + self.rng.choice((-2, -1, -1, 1, 1, 2))))
            if at % 2 == 0:
                step = min(range(12), key=lambda s: abs(s - step) + (0 if (s - degree) % 7 in (0, 2, 4) else 100))
            if self.rng.random() > 0.12:  # a breath now and then
                self.add("lead", bar, at, beats, 24 + _pitch(tonic, mode, step), 92)
            at += beats
        return step
