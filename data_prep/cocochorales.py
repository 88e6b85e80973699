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

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep.cocochorales_reader import INSTRUMENTS, SAMPLE_RATE, Chord, Voice, held_chords, read_track, scan_tracks
from data_prep.stage import Fields, Input, Samples, Stage
from pipeline.shards import SPLITS

FRAMES = 10
ATTACK = 0.15  # seconds after the last onset
RELEASE = 0.01  # seconds before the first release
LEVEL = 0.1  # RMS of a mixture
SILENT = 1e-4  # RMS below which a stem does not sound where its MIDI says it does
MEL_BATCH = 256  # clips; bounds the memory of one mel computation
DEFAULT_LICENCE = (
    "CocoChorales: Google LLC, Creative Commons Attribution 4.0 (magenta.tensorflow.org/datasets/cocochorales)."
)


@dataclass(frozen=True)
class Clip:
    """Where one stem was cut: ``start`` in seconds, ``pitch`` a MIDI number, ``instrument`` an index."""

    track: str
    voice: int
    start: float
    pitch: int
    instrument: int


@dataclass(frozen=True)
class Mixture:
    """``mixture`` (128, F) and ``sources`` (N, 128, F), float32 log-mel; ``clips`` by source."""

    key: str
    clips: tuple[Clip, ...]
    gain: float
    mixture: np.ndarray
    sources: np.ndarray


@dataclass(frozen=True)
class TrackMels:
    """What a track gives: its mixtures, and its clips (``bank``: one log-mel (128, F) each) as queries for other tracks."""

    name: str
    mixtures: tuple[Mixture, ...]
    clips: tuple[Clip, ...]
    bank: np.ndarray
    silent: int


@dataclass(frozen=True)
class SimpleCase(Stage):
    """``mixtures_per_track`` None takes every choice of ``sources`` voices with different instruments out of every chord."""

    sources: int
    queries: int
    instruments: tuple[str, ...]
    pitch_low: int
    pitch_high: int
    mixtures_per_track: int | None
    dataset: ClassVar[str] = "cocochorales"
    code: ClassVar[tuple[str, ...]] = (
        "data_prep.cocochorales:SimpleCase",
        "data_prep.cocochorales_reader:read_track",
        "data_prep.cocochorales_reader:held_chords",
        "data_prep.shards:ShardWriter",
        "models.features:log_mel",
        "models.features:SIMPLE",
    )

    def scan(self, source: Path) -> list[Input]:
        return scan_tracks(source)

    def licence(self, source: Path) -> str:
        own = source / "LICENCE.txt"
        return own.read_text().strip() if own.is_file() else DEFAULT_LICENCE

    def leak_signature(self, item: Input) -> str | None:
        """All stems' contents: the same recording under another name has the same."""
        stems = sorted(f.hash for f in item.files if f.path.endswith(".wav") and f.size > 1024)
        return "/".join(stems) if len(stems) > 1 else None

    def load(self, item: Input, read: Callable[[str], bytes]) -> TrackMels:
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
            crops.append(crop * (LEVEL / math.sqrt(self.sources) / max(_rms(crop), SILENT)))
        mixtures = self._mixtures(item.name, voices, chosen)
        return TrackMels(item.name, mixtures, tuple(clips), _log_mels(crops), silent)

    def assemble(self, loaded: Sequence[TrackMels]) -> tuple[Samples, dict[str, Any]]:
        bank: dict[int, list[tuple[Clip, np.ndarray]]] = {}
        for track in loaded:
            for clip, mel in zip(track.clips, track.bank, strict=True):
                bank.setdefault(clip.instrument, []).append((clip, mel))
        shared = {i: len({clip.track for clip, _ in entries}) > 1 for i, entries in bank.items()}
        mixtures = [m for track in loaded for m in track.mixtures]
        usable = [m for m in mixtures if all(shared[clip.instrument] for clip in m.clips)]
        # The loader permutes within windows of neighbours, so mixtures of one chord must not stand next to each other
        random.Random(f"{self.recipe}/order/{loaded[0].name if loaded else ''}").shuffle(usable)
        samples = [(m.key, self._fields(m, bank)) for m in usable]
        summary = self._summary(usable) | {
            "no_query": len(mixtures) - len(usable),
            "silent": sum(track.silent for track in loaded),
        }
        return samples, summary

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        from models.features import SIMPLE

        count, total, squares = (sum(s[k] for s in summaries["train"]) for k in ("count", "sum", "sum_of_squares"))
        mean = total / count
        mel = {k: v for k, v in dataclasses.asdict(SIMPLE).items() if k != "sample_rate"}
        return {
            "instruments": list(self.instruments),
            "pitch_low": self.pitch_low,
            "pitch_high": self.pitch_high,
            "sources": self.sources,
            "queries": self.queries,
            "frames": FRAMES,
            "seconds": FRAMES * SIMPLE.hop / SAMPLE_RATE,
            "sample_rate": SAMPLE_RATE,
            "mel": mel | {"compression": "natural logarithm"},
            "mean": round(mean, 5),
            "std": round(math.sqrt(squares / count - mean**2), 5),
            "samples": samples,
        }

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        from models.features import SIMPLE

        every = [summary for split in SPLITS for summary in summaries[split]]
        hours = sum(s["samples"] for s in every) * FRAMES * SIMPLE.hop / SAMPLE_RATE / 3600
        no_query, silent = (sum(s[what] for s in every) for what in ("no_query", "silent"))
        return "\n".join(
            [
                f"Each sample is a mixture of {self.sources} held notes by different instruments, with {self.queries} queries "
                "a source; fields, shapes and units stand at the head of `data_prep/cocochorales.py`.",
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
        return [
            f"| {split} | {name} | {row.sum()} | {row.min()} | {row.mean():.1f} | {row.max()} | {(row == 0).sum()} |"
            for name, row in zip(self.instruments, table, strict=True)
        ]

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
            if any(_rms(_crop(voices[i], start)) < SILENT for i in members):
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
            gain = LEVEL / max(_rms(mix), SILENT)
            crops += [gain * mix, *(gain * stem for stem in stems)]
            clips = tuple(self._clip(track, chord, i, start, voices) for i in members)
            key = f"{track}-{round(start * 1000):06d}-{''.join(map(str, members))}"
            facts.append((key, clips, gain))
        mels = _log_mels(crops)
        mels = mels.reshape(len(facts), 1 + self.sources, *mels.shape[1:])
        return tuple(Mixture(*fact, mel[0], mel[1:]) for fact, mel in zip(facts, mels, strict=True))

    def _clip(self, track: str, chord: Chord, voice: int, start: float, voices: Sequence[Voice]) -> Clip:
        pitch = chord.pitches[voice]
        assert pitch is not None
        return Clip(track, voice, start, pitch, self.instruments.index(voices[voice].instrument))

    def _fields(self, mixture: Mixture, bank: dict[int, list[tuple[Clip, np.ndarray]]]) -> Fields:
        rng = random.Random(f"{self.recipe}/{mixture.key}/queries")
        drawn = [_other_tracks(rng, bank[clip.instrument], clip.track, self.queries) for clip in mixture.clips]
        meta = {
            "track": mixture.clips[0].track,
            "start": mixture.clips[0].start,
            "voices": [clip.voice for clip in mixture.clips],
            "gain": mixture.gain,
            "queries": [[[c.track, c.voice, c.start, c.pitch] for c, _ in queries] for queries in drawn],
        }
        return {
            "mixture": mixture.mixture,
            "sources": mixture.sources,
            "queries": np.stack([np.stack([mel for _, mel in queries]) for queries in drawn]),
            "pitch": np.array([clip.pitch for clip in mixture.clips], np.int64),
            "instrument": np.array([clip.instrument for clip in mixture.clips], np.int64),
            "meta": meta,
        }

    def _summary(self, mixtures: Sequence[Mixture]) -> dict[str, Any]:
        notes = self._no_notes()
        count, total, squares = 0, 0.0, 0.0
        for mixture in mixtures:
            for clip in mixture.clips:
                notes[clip.instrument, clip.pitch - self.pitch_low] += 1
            for mel in (mixture.mixture, mixture.sources):
                values = mel.astype(np.float64)
                count, total, squares = (
                    count + values.size,
                    total + float(values.sum()),
                    squares + float((values**2).sum()),
                )
        return {
            "samples": len(mixtures),
            "notes": notes.tolist(),
            "count": count,
            "sum": total,
            "sum_of_squares": squares,
        }

    def _no_notes(self) -> np.ndarray:
        return np.zeros((len(self.instruments), self.pitch_high - self.pitch_low + 1), np.int64)


def _other_tracks(
    rng: random.Random, entries: Sequence[tuple[Clip, np.ndarray]], track: str, count: int
) -> list[tuple[Clip, np.ndarray]]:
    """``count`` random entries of tracks other than ``track``; at least one such entry must exist."""
    drawn: list[tuple[Clip, np.ndarray]] = []
    while len(drawn) < count:
        entry = entries[rng.randrange(len(entries))]
        if entry[0].track != track:
            drawn.append(entry)
    return drawn


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


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2)))


def _log_mels(crops: Sequence[np.ndarray]) -> np.ndarray:
    """(len(crops), 128, F) float32. Computed in double precision, so that the last bit does not hang on the order of additions."""
    import torch

    from models.features import SIMPLE, log_mel

    batches = [
        log_mel(torch.from_numpy(np.stack(crops[i : i + MEL_BATCH])), SIMPLE, context=True).float().numpy()
        for i in range(0, len(crops), MEL_BATCH)
    ]
    return np.concatenate(batches) if batches else np.zeros((0, SIMPLE.bands, FRAMES), np.float32)


RECIPES: dict[str, SimpleCase] = {
    recipe.recipe: recipe
    for recipe in (
        # The paper's simple case on CocoChorales; 52 pitches that cover the four voices
        SimpleCase("cocochorales_simple", 256, 4, 4, INSTRUMENTS, 33, 84, mixtures_per_track=4),
        # For two CPU cores: four instruments with clearly different timbres, two octaves
        SimpleCase("cocochorales_simple_demo", 12, 2, 2, ("violin", "flute", "clarinet", "trumpet"), 48, 72, None),
    )
}
