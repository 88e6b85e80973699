"""A singing voice without recordings: a pulse train through the formants of vowels, with vibrato, breath and consonants; seeded.

Formants: the means of male speakers in Peterson and Barney, "Control methods used in a study of the vowels" (1952), Table II.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from data_prep.chorales import Note

VOWELS = {  # Hz of the first three formants
    "i": (270, 2290, 3010),
    "e": (530, 1840, 2480),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
BANDWIDTHS = (70.0, 90.0, 140.0)  # Hz
GAINS = (1.0, 0.6, 0.35)
VIBRATO_HZ, VIBRATO_CENTS, VIBRATO_AFTER = 5.6, 35.0, 0.25
GLIDE = 0.05  # seconds from one pitch to the next
ATTACK, RELEASE = 0.04, 0.07  # seconds
BREATH = 0.015  # of noise in the source
CONSONANT = 0.05  # seconds of hiss before a note
CONSONANTS = 0.4  # how often
PEAK = 0.5


def sing(notes: Sequence[Note], seconds: float, rate: int, seed: str) -> np.ndarray:
    """(n,) float64 of a melody at ``rate``, peak PEAK; each note has a vowel of its own, some begin with a consonant."""
    rng, noise = random.Random(seed), np.random.default_rng(list(seed.encode()))
    count = round(seconds * rate)
    source = _pulses(_pitch_curve(notes, count, rate, rng), rate) + BREATH * noise.standard_normal(count)
    loud = {vowel: np.zeros(count) for vowel in VOWELS}
    hiss = np.zeros(count)
    for note in notes:
        first, last = (min(count, round(t * rate)) for t in (note.start, note.end + RELEASE))
        loud[rng.choice(tuple(VOWELS))][first:last] += note.velocity / 127 * _envelope(last - first, rate)
        if rng.random() < CONSONANTS:
            begin = max(0, first - round(CONSONANT * rate))
            hiss[begin:first] += 0.12 * np.hanning(first - begin)
    wave = sum((envelope * _vowel(source, vowel, rate) for vowel, envelope in loud.items()), np.zeros(count))
    wave = wave + _hiss(hiss, rate, noise)
    return PEAK / max(float(np.abs(wave).max()), 1e-9) * wave


def _pitch_curve(notes: Sequence[Note], count: int, rate: int, rng: random.Random) -> np.ndarray:
    """(n,) Hz: gliding from note to note, with vibrato on what is held."""
    from scipy.ndimage import uniform_filter1d

    steps = np.full(count, float(notes[0].pitch) if notes else 60.0)
    vibrato = np.zeros(count)
    for note in notes:
        first, held = round(note.start * rate), round((note.start + VIBRATO_AFTER) * rate)
        steps[first:] = note.pitch + rng.uniform(-0.12, 0.12)
        vibrato[first:] = 0.0
        vibrato[held:] = 1.0
    smooth = uniform_filter1d(steps, round(GLIDE * rate), mode="nearest")
    swing = VIBRATO_CENTS / 100 * np.sin(2 * np.pi * VIBRATO_HZ * np.arange(count) / rate)
    return 440 * 2 ** ((smooth + vibrato * swing - 69) / 12)


def _pulses(hertz: np.ndarray, rate: int) -> np.ndarray:
    """A sawtooth of that pitch whose steps are rounded over two samples (polynomial band-limited step), lowpassed as a glottis is."""
    from scipy.signal import lfilter

    step = hertz / rate
    phase = np.cumsum(step) % 1.0
    saw = 2 * phase - 1
    early, late = phase / step, (phase - 1) / step
    saw -= np.where(early < 1, 2 * early - early**2 - 1, 0.0) + np.where(late > -1, late**2 + 2 * late + 1, 0.0)
    pole = np.exp(-2 * np.pi * 900 / rate)
    return lfilter([1 - pole], [1, -pole], saw)


def _vowel(source: np.ndarray, vowel: str, rate: int) -> np.ndarray:
    """The source through three parallel two-pole resonators."""
    from scipy.signal import lfilter

    parts = []
    for hertz, width, gain in zip(VOWELS[vowel], BANDWIDTHS, GAINS, strict=True):
        radius = np.exp(-np.pi * width / rate)
        poles = [1.0, -2 * radius * np.cos(2 * np.pi * hertz / rate), radius**2]
        parts.append(lfilter([gain * (1 - radius)], poles, source))
    return np.sum(parts, axis=0)


def _hiss(envelope: np.ndarray, rate: int, noise: np.random.Generator) -> np.ndarray:
    from scipy.signal import butter, sosfilt

    return envelope * sosfilt(butter(2, 4000, "highpass", fs=rate, output="sos"), noise.standard_normal(len(envelope)))


def _envelope(count: int, rate: int) -> np.ndarray:
    rise, fall = (min(count // 2, round(t * rate)) for t in (ATTACK, RELEASE))
    return np.concatenate([np.linspace(0, 1, rise), np.ones(count - rise - fall), np.linspace(1, 0, fall)])
