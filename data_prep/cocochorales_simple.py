"""CocoChorales for DisMix's simple case: mixtures of held notes, their sources, and other clips of the same instruments.

A sample is one mixture of N voices of one held chord. F = 10 frames of 128 mel bands (320 ms at 16 kHz, ``features.SIMPLE``):

    mixture.npy      float32 (128, F)        log-mel of the summed stems
    sources.npy      float32 (N, 128, F)     log-mel of each stem, with the mixture's gain
    queries.npy      float32 (N, Q, 128, F)  Q clips of the same instrument out of other tracks of the same shard, any pitch
    pitch.npy        int64 (N,)              MIDI numbers
    instrument.npy   int64 (N,)              index into info["instruments"]
    meta.json        track, start (seconds), voices, gain, queries [N][Q] of [track, voice, start, MIDI number]

The crop is taken from the sustain: after ATTACK from the last onset, and wholly before the first release. One gain brings the
mixture to LEVEL; a query is brought to LEVEL / sqrt(N). No padding: the windows at both ends reach into the recording itself.
Queries come from the sample's own shard, so that a shard depends on its own inputs and on nothing else.

The manifest's ``info``: instruments (names), pitch_low and pitch_high (MIDI, both inclusive), sources (N), queries (Q), frames, seconds
(of a crop), sample_rate, mel {bands, window, hop, f_min, f_max, floor, compression}, mean and std (of log-mel over the training
split's mixtures and sources), samples {train, valid, test}.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from data_prep.cocochorales_clips import (
    LEVEL,
    SHARED_CODE,
    SILENT,
    ChoraleStage,
    Clip,
    Mixture,
    TrackMixtures,
    balance_rows,
    log_mels,
    query_gain,
    rms,
)
from data_prep.cocochorales_reader import SAMPLE_RATE, Chord, Voice, held_chords, read_track
from data_prep.stage import Fields, Input
from pipeline.manifest import SPLITS

if TYPE_CHECKING:
    from models.features import MelSpec

FRAMES = 10
ATTACK = 0.15  # seconds after the last onset
RELEASE = 0.01  # seconds before the first release


@dataclass(frozen=True)
class SimpleCase(ChoraleStage):
    """``mixtures_per_track`` None takes every choice of ``sources`` voices with different instruments out of every chord."""

    pitch_low: int
    pitch_high: int
    mixtures_per_track: int | None
    frames: ClassVar[int] = FRAMES
    code: ClassVar[tuple[str, ...]] = (
        *SHARED_CODE,
        "data_prep.cocochorales_simple:SimpleCase",
        "data_prep.cocochorales_reader:held_chords",
        "models.features:SIMPLE",
    )

    @property
    def mel(self) -> MelSpec:
        from models.features import SIMPLE

        return SIMPLE

    def load(self, item: Input, read: Callable[[str], bytes]) -> TrackMixtures:
        voices = read_track(item, read)
        chosen, silent = self._choose(item.name, voices)
        rows = sorted(
            {(chord, voice) for chord, members, _ in chosen for voice in members},
            key=lambda row: (row[0].start, row[1]),
        )
        clips, crops = [], []
        for chord, voice in rows:
            start = _start(chord, f"{item.name}/{chord.start:.3f}/{voice}/query")
            crop = _crop(voices[voice], start)
            clips.append(self._clip(item.name, chord, voice, start, voices))
            crops.append(crop * query_gain(crop, self.sources))
        mixtures = self._mixtures(item.name, voices, chosen)
        return TrackMixtures(item.name, mixtures, tuple(zip(clips, log_mels(crops, self.mel), strict=True)), silent)

    def notes(self, mixtures: Sequence[Mixture]) -> np.ndarray:
        notes = self._no_notes()
        for mixture in mixtures:
            for clip in mixture.clips:
                assert clip.pitch is not None
                notes[clip.instrument, clip.pitch - self.pitch_low] += 1
        return notes

    def own_fields(self, mixture: Mixture) -> Fields:
        return {"pitch": np.array([clip.pitch for clip in mixture.clips], np.int64)}

    def own_facts(self, mixture: Mixture) -> dict[str, Any]:
        return {"voices": [clip.voice for clip in mixture.clips]}

    def query_facts(self, clip: Clip) -> list[Any]:
        return [*super().query_facts(clip), clip.pitch]

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        return super().info(summaries, samples) | {"pitch_low": self.pitch_low, "pitch_high": self.pitch_high}

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        every = [summary for split in SPLITS for summary in summaries[split]]
        hours = self.hours(summaries)
        no_query, silent = (sum(s[what] for s in every) for what in ("no_query", "silent"))
        return "\n".join(
            [
                f"Each sample is a mixture of {self.sources} held notes by different instruments, with {self.queries} queries "
                "a source; fields, shapes and units stand at the head of `data_prep/cocochorales_simple.py`.",
                "",
                f"{hours:.2f} hours of mixtures. Left out: {no_query} mixtures with an instrument that no other track of the shard "
                f"plays (no query), {silent} in which a stem is silent where its MIDI has a note.",
                "",
                "## Balance",
                "",
                f"Sources by split and instrument, and how they spread over the MIDI notes {self.pitch_low} to {self.pitch_high}.",
                "",
                "| split | instrument | sources | least of a note | mean | most | notes that never occur |",
                "|---|---|---|---|---|---|---|",
                *(row for split in SPLITS for row in self._balance(split, summaries[split])),
            ]
        )

    def _balance(self, split: str, summaries: Sequence[dict[str, Any]]) -> list[str]:
        table = np.sum([summary["notes"] for summary in summaries] or [self._no_notes()], axis=0)
        return balance_rows(split, self.instruments, table)

    def _choose(self, track: str, voices: Sequence[Voice]) -> tuple[list[tuple[Chord, tuple[int, ...], float]], int]:
        """The mixtures to make, as (chord, voices, start of the crop in seconds), and how many were left out as silent."""
        long_enough = ATTACK + RELEASE + _crop_seconds()
        options = []
        for chord in held_chords([voice.notes for voice in voices], long_enough):
            fit = [i for i, pitch in enumerate(chord.pitches) if self._fits(voices[i], pitch)]
            for members in itertools.combinations(fit, self.sources):
                if len({voices[i].instrument for i in members}) == self.sources:
                    options.append((chord, members))
        if self.mixtures_per_track is not None and len(options) > self.mixtures_per_track:
            kept = random.Random(f"{self.recipe}/{track}/mixtures").sample(range(len(options)), self.mixtures_per_track)
            options = [options[i] for i in sorted(kept)]
        chosen, silent = [], 0
        for chord, members in options:
            start = _start(chord, f"{track}/{chord.start:.3f}/{members}")
            if any(rms(_crop(voices[i], start)) < SILENT for i in members):
                silent += 1
            else:
                chosen.append((chord, members, start))
        return chosen, silent

    def _fits(self, voice: Voice, pitch: int | None) -> bool:
        return voice.instrument in self.instruments and pitch is not None and self.pitch_low <= pitch <= self.pitch_high

    def _mixtures(
        self, track: str, voices: Sequence[Voice], chosen: Sequence[tuple[Chord, tuple[int, ...], float]]
    ) -> tuple[Mixture, ...]:
        crops, facts = [], []
        for chord, members, start in chosen:
            stems = [_crop(voices[i], start) for i in members]
            mix = np.sum(stems, axis=0)
            gain = LEVEL / max(rms(mix), SILENT)
            crops += [gain * mix, *(gain * stem for stem in stems)]
            clips = tuple(self._clip(track, chord, i, start, voices) for i in members)
            key = f"{track}-{round(start * 1000):06d}-{''.join(map(str, members))}"
            facts.append((key, clips, gain))
        mels = log_mels(crops, self.mel)
        mels = mels.reshape(len(facts), 1 + self.sources, *mels.shape[1:])
        return tuple(Mixture(*fact, mel[0], mel[1:]) for fact, mel in zip(facts, mels, strict=True))

    def _clip(self, track: str, chord: Chord, voice: int, start: float, voices: Sequence[Voice]) -> Clip:
        pitch = chord.pitches[voice]
        assert pitch is not None
        return Clip(track, voice, start, self.instruments.index(voices[voice].instrument), pitch)

    def _no_notes(self) -> np.ndarray:
        return np.zeros((len(self.instruments), self.pitch_high - self.pitch_low + 1), np.int64)


def _crop_seconds() -> float:
    """With the margins that the outermost windows reach into."""
    from models.features import SIMPLE

    return (FRAMES * SIMPLE.hop + 2 * SIMPLE.margin) / SAMPLE_RATE


def _start(chord: Chord, seed: str) -> float:
    """Where the crop (its margin included) begins: anywhere in the sustain, seconds, on a sample."""
    first = chord.start + ATTACK
    slack = chord.end - RELEASE - _crop_seconds() - first
    return math.ceil((first + random.Random(seed).random() * slack) * SAMPLE_RATE) / SAMPLE_RATE


def _crop(voice: Voice, start: float) -> np.ndarray:
    """(n,) float64 from ``start`` seconds; zeros where the stem has ended within its tolerance."""
    first, length = round(start * SAMPLE_RATE), round(_crop_seconds() * SAMPLE_RATE)
    crop = voice.audio[first : first + length]
    return crop if len(crop) == length else np.pad(crop, (0, length - len(crop)))
