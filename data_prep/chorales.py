"""Four-part chorales of our own: chords chosen by harmonic function, voiced by the textbook's rules, seeded.

No corpus is copied: a chord follows another by a small table of common progressions, phrases end in cadences, and
each chord is voiced by searching all voicings for the smoothest that breaks no rule.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

VOICES = ("soprano", "alto", "tenor", "bass")
RANGES = ((58, 81), (52, 75), (46, 69), (38, 62))  # MIDI notes, soprano to bass: together nearly flat from 48 to 72
PHRASE = 8  # chords
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
LEADING = 6  # scale degree; raised in minor where it leads to the tonic
# Degree -> degrees that may follow, by weight. Degrees count from 0; the diminished chord on 6 stands for the dominant.
FOLLOWS = {
    0: {0: 1, 3: 4, 4: 4, 5: 3, 1: 3, 2: 1},
    1: {4: 5, 6: 2, 0: 1},
    2: {5: 4, 3: 2},
    3: {4: 4, 0: 2, 1: 3},
    4: {0: 5, 5: 2, 2: 1},
    5: {1: 3, 3: 4, 4: 2, 2: 1},
    6: {0: 5},
}
TIE = 0.25  # how often a repeated pitch is held over instead of struck again
Voicing = tuple[int, int, int, int]


@dataclass(frozen=True)
class Note:
    """``start`` and ``end`` in seconds, ``pitch`` a MIDI number, ``velocity`` 1 to 127."""

    start: float
    end: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class Chorale:
    """``tempo`` in quarter notes a minute (a chord is a quarter), ``seconds`` to the last release, voices soprano to bass."""

    tempo: int
    seconds: float
    voices: tuple[tuple[Note, ...], ...]


def compose(rng: random.Random, chords: int, tonic: int) -> Chorale:
    """A chorale of ``chords`` chords in the key of ``tonic`` (pitch class, 0 for C).

    A chord lasts .6 to .8 s, the last of a phrase half as long again.
    """
    mode, tempo = rng.choice(("major", "minor")), rng.randint(76, 100)
    beat = 60 / tempo
    voicings: list[Voicing] = []
    for degree, register in zip(_degrees(rng, chords), _registers(rng, chords), strict=True):
        tones = _tones(tonic, mode, degree)
        voicings.append(_voice(rng, tones, _basses(rng, tones, degree), voicings[-1] if voicings else None, register))
    starts, ends, now = [], [], 0.1
    for i in range(chords):
        long = 1.5 if (i + 1) % PHRASE == 0 else 1.0
        starts.append(now)
        now += beat * long
        ends.append(now)
    voices = tuple(_line(rng, [v[part] for v in voicings], starts, ends) for part in range(len(VOICES)))
    return Chorale(tempo, now, voices)


def transposed(chorale: Chorale, semitones: int) -> Chorale:
    """The same a few semitones higher."""
    voices = tuple(tuple(replace(n, pitch=n.pitch + semitones) for n in notes) for notes in chorale.voices)
    return replace(chorale, voices=voices)


def _degrees(rng: random.Random, chords: int) -> list[int]:
    degrees = [0]
    while len(degrees) < chords:
        place = len(degrees) % PHRASE
        if place == PHRASE - 2:
            degrees.append(4)  # the dominant before a phrase's end ...
        elif place == PHRASE - 1:
            degrees.append(rng.choices((0, 5), (4, 1))[0])  # ... which is a full cadence, now and then a deceptive one
        else:
            follows = FOLLOWS[degrees[-1]]
            degrees.append(rng.choices(list(follows), list(follows.values()))[0])
    degrees[-1] = 0
    return degrees


def _registers(rng: random.Random, chords: int) -> list[int]:
    """For each chord the soprano's pitch to lean to, new in every phrase, so that all voices roam their whole range."""
    low, high = RANGES[0]
    phrases = [rng.randint(low, high) for _ in range(-(-chords // PHRASE))]
    return [phrases[i // PHRASE] for i in range(chords)]


def _tones(tonic: int, mode: str, degree: int) -> tuple[int, int, int]:
    """Pitch classes of the triad: root, third, fifth."""
    scale = list(SCALES[mode])
    if degree in (4, LEADING):
        scale[LEADING] = 11  # the leading tone, in minor too
    root, third, fifth = ((tonic + scale[(degree + step) % 7]) % 12 for step in (0, 2, 4))
    return root, third, fifth


def _basses(rng: random.Random, tones: tuple[int, int, int], degree: int) -> list[int]:
    inverted = degree == LEADING or rng.random() < 0.25
    return _within(RANGES[3], (tones[1] if inverted else tones[0],))


def _within(bounds: tuple[int, int], classes: tuple[int, ...]) -> list[int]:
    return [p for p in range(bounds[0], bounds[1] + 1) if p % 12 in classes]


def _voice(
    rng: random.Random, tones: tuple[int, int, int], basses: list[int], before: Voicing | None, register: int
) -> Voicing:
    """The cheapest voicing of the chord after ``before``."""
    best, best_cost = None, float("inf")
    near = [None] * 3 if before is None else before[:3]
    upper = [
        [p for p in _within(RANGES[i], tones) if last is None or abs(p - last) <= 9] for i, last in enumerate(near)
    ]
    for tenor, alto, soprano in itertools.product(upper[2], upper[1], upper[0]):
        if not tenor < alto < soprano <= alto + 12 or alto > tenor + 12:
            continue  # voices neither cross nor drift more than an octave apart
        for bass in basses:
            classes = [p % 12 for p in (soprano, alto, tenor, bass)]
            if bass >= tenor or tones[0] not in classes or tones[1] not in classes or classes.count(tones[1]) > 2:
                continue
            voicing = (soprano, alto, tenor, bass)
            cost = _cost(voicing, before) + 0.8 * abs(soprano - register) + rng.random()
            cost += 0.0 if tones[2] in classes else 1.5
            if cost < best_cost:
                best, best_cost = voicing, cost
    if best is None:  # the last chord left no way within reach: start afresh, as after a breath
        if before is None:
            raise AssertionError(f"no voicing of {tones} in {RANGES}")
        return _voice(rng, tones, basses, None, register)
    return best


def _cost(voicing: Voicing, before: Voicing | None) -> float:
    """Motion of the voices, and a heavy price for parallel fifths and octaves."""
    if before is None:
        return 0.0
    motion = sum(abs(a - b) for a, b in zip(voicing[:3], before[:3], strict=True)) + 0.3 * abs(voicing[3] - before[3])
    for i, j in itertools.combinations(range(4), 2):
        interval = (voicing[i] - voicing[j]) % 12
        if interval in (0, 7) and (before[i] - before[j]) % 12 == interval and voicing[i] != before[i]:
            motion += 30.0
    return motion


def _line(rng: random.Random, pitches: list[int], starts: list[float], ends: list[float]) -> tuple[Note, ...]:
    """One voice's notes, a few tens of milliseconds apart from the beat as players are; repeated pitches are sometimes tied."""
    notes: list[Note] = []
    for pitch, start, end in zip(pitches, starts, ends, strict=True):
        if notes and notes[-1].pitch == pitch and rng.random() < TIE:
            notes[-1] = Note(notes[-1].start, end - 0.01, pitch, notes[-1].velocity)
        else:
            late = rng.uniform(0.0, 0.02)
            notes.append(Note(start + late, end - 0.01, pitch, rng.randint(64, 112)))
    return tuple(notes)
