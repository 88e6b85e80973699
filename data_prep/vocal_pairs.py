"""Raw and mixed vocals for Diff-MST: what went into the mixing engineer's chain, what came out, and another section as reference; 48 kHz.

    <source>/raw/NAME.wav      the take, mono (stereo is averaged)
    <source>/mixed/NAME.wav    the same, mixed: stereo, often later (the latency of plug-ins) and longer (reverb)
    <source>/settings.json     optional: {NAME: how it was mixed}, where that is known, as of the demo

The pair is aligned by cross-correlation, and where the two do not belong together they are refused. A sample is one segment of a song:

    raw.npy            int16 (1, segment)   full scale 32768; one gain for the song's raw and mixed, 1 unless one would clip
    mixed.npy          int16 (2, segment)   aligned to raw
    reference.npy      int16 (2, segment)   another section of the same mixed vocal, not overlapping this one
    has_reference.npy  bool ()              False where the song has no other section; the reference is silent then
    song.npy           int64 ()             equal for the segments of one song, to draw a reference from another one
    lag.npy            int64 ()             samples that mixed was later than raw in the files
    lufs.npy, peak.npy, clipped.npy, silence.npy   (3,)   of raw, mixed and reference (see ``levels.measure``)
    pad.npy            int64 ()             zeros appended, in samples
    meta.json          name, start and reference_start (samples in the aligned pair), gain, lag, correlation, polarity, raw_channels,
                       mixed_channels, settings (null where nobody knows them)

Segments in which the raw voice is silent are left out. Songs are dealt to splits by their names.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import xxhash

from data_prep import levels
from data_prep.alignment import aligned, estimate_lag
from data_prep.audio import FULL_SCALE, decode_at, fitting_gain, mono, pcm16, peak
from data_prep.segments import segment, segment_starts
from data_prep.splits import split_by_name
from data_prep.stage import BadInput, Fields, Input, InputFile, Samples
from data_prep.wave_stage import SHARED_CODE, WaveStage, root_of, sample_key, with_levels
from pipeline.errors import UserError

AUDIO = (".wav", ".flac")
LAYOUT = "raw/NAME.wav and mixed/NAME.wav"
SIDES = ("raw", "mixed")
SETTINGS = "settings.json"
LONGEST_LAG = 1.0  # seconds
BELONG = 0.15  # correlation of an aligned pair below which the two are not the same singing
SILENT = 1e-3  # RMS; -60 dBFS


@dataclass(frozen=True)
class Song:
    """``raw`` int16 (1, n) and ``mixed`` int16 (2, n), aligned, with ``gain`` applied; ``facts`` go into every sample's meta."""

    name: str
    raw: np.ndarray
    mixed: np.ndarray
    gain: float
    lag: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class VocalPairs(WaveStage):
    dataset: ClassVar[str] = "vocal_pairs"
    tracks: ClassVar[tuple[str, ...]] = ("raw", "mixed", "reference")
    default_licence: ClassVar[str] = "Your own recordings; their licence is not known here."
    code: ClassVar[tuple[str, ...]] = (
        *SHARED_CODE,
        "data_prep.vocal_pairs:VocalPairs",
        "data_prep.alignment",
        "data_prep.splits:split_by_name",
    )
    counted: ClassVar[dict[str, str]] = {
        "songs": "{} songs; the splits share none of them.",
        "late": "{} of them have a mixed vocal that is not in step with the raw one; the lag is recorded and removed.",
        "silent_segments": "{} segments without a voice were left out.",
        "no_reference": "{} segments have no other section to refer to, which `has_reference` marks.",
    }

    def scan(self, source: Path) -> list[Input]:
        """A name is an input, with one file or both: what has no partner ends up in the quarantine with the reason."""
        root = root_of(source, SIDES, LAYOUT)
        files: dict[str, list[Path]] = {}
        for side in SIDES:
            if not (root / side).is_dir():
                raise UserError(f"{root} has no folder {side}; expected {LAYOUT}.")
            for path in sorted((root / side).rglob("*")):
                if path.suffix.lower() in AUDIO and path.name[0] != ".":
                    files.setdefault(path.relative_to(root / side).with_suffix("").as_posix(), []).append(path)
        if not files:
            raise UserError(f"{root} has no audio files in raw and mixed; expected {LAYOUT}.")
        splits = split_by_name(name for name, paths in files.items() if len(paths) > 1)  # what is alone fills no split
        known = _known_settings(root / SETTINGS)
        return [
            Input(
                name,
                splits.get(name, "train"),
                name,
                tuple(InputFile(path.relative_to(source).as_posix()) for path in paths),
                (json.dumps(known[name], sort_keys=True),) if name in known else (),
            )
            for name, paths in sorted(files.items())
        ]

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        return tuple(file.hash for file in item.files if file.hash)

    def load(self, item: Input, read: Callable[[str], bytes]) -> Song:
        paths = _sides(item)
        raw, mixed = (decode_at(read(paths[side]), f"{side}/{item.name}", self.sample_rate) for side in SIDES)
        if len(mixed) > 2:
            raise BadInput(f"mixed/{item.name} has {len(mixed)} channels, 1 or 2 are read")
        found = estimate_lag(mono(raw), mono(mixed), int(LONGEST_LAG * self.sample_rate))
        if abs(found.correlation) < BELONG:
            raise BadInput(
                f"raw and mixed do not belong together: aligned as well as can be, they correlate by {found.correlation:.3f}"
            )
        facts = {
            "name": item.name,
            "lag": found.lag,
            "correlation": round(abs(found.correlation), 4),
            "polarity": 1 if found.correlation > 0 else -1,
            "raw_channels": len(raw),
            "mixed_channels": len(mixed),
            "settings": json.loads(item.facts[0]) if item.facts else None,
        }
        raw, mixed = aligned(mono(raw)[None], mixed, found.lag)
        gain = fitting_gain(peak(raw), peak(mixed))
        stereo = mixed if len(mixed) == 2 else np.repeat(mixed, 2, axis=0)
        raw, stereo = (pcm16(wave, gain) for wave in (raw, stereo))
        return Song(item.name, raw, stereo, gain, found.lag, facts | {"gain": gain})

    def assemble(self, loaded: Sequence[Song]) -> tuple[Samples, dict[str, Any]]:
        samples: Samples = []
        silent = 0
        for song in loaded:
            starts = segment_starts(song.raw.shape[1], self.segment)
            sung = [start for start in starts if _rms(song.raw[:, start : start + self.segment]) >= SILENT]
            silent += len(starts) - len(sung)
            for start in sung:
                others = [other for other in sung if abs(other - start) >= self.segment]
                rng = random.Random(f"{self.recipe}/{song.name}/{start}")
                samples.append(self._sample(song, start, rng.choice(others) if others else None))
        return self.gathered(
            samples,
            songs=len(loaded),
            late=sum(song.lag != 0 for song in loaded),
            silent_segments=silent,
            no_reference=sum(not fields["has_reference"] for _, fields in samples),
        )

    def _sample(self, song: Song, start: int, reference: int | None) -> tuple[str, Fields]:
        raw, pad = segment(song.raw, start, self.segment)
        mixed, _ = segment(song.mixed, start, self.segment)
        other = np.zeros_like(mixed) if reference is None else segment(song.mixed, reference, self.segment)[0]
        own: Fields = {
            "raw": raw,
            "mixed": mixed,
            "reference": other,
            "has_reference": np.asarray(reference is not None),
            "song": np.asarray(xxhash.xxh3_64_intdigest(song.name.encode()) >> 1, np.int64),
            "lag": np.asarray(song.lag, np.int64),
            "meta": {**song.facts, "start": start, "reference_start": reference},
        }
        measured = levels.measure([raw, mixed, other], self.sample_rate, song.gain)
        return sample_key(song.name, start), with_levels(own, measured, pad)


def _known_settings(path: Path) -> dict[str, Any]:
    """By song; empty where there is no such file. UserError where it is no table of them."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); repair it, or move it away.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must map each song's name to its settings; repair it, or move it away.")
    return tree


def _sides(item: Input) -> dict[str, str]:
    """Path of raw and mixed. Raises BadInput for one that is missing or double."""
    found: dict[str, str] = {}
    depth = PurePosixPath(item.name).parts
    for file in item.files:
        side = PurePosixPath(file.path).parts[-len(depth) - 1]
        if side in found:
            raise BadInput(
                f"it has two files in {side}: {PurePosixPath(found[side]).name}, {PurePosixPath(file.path).name}"
            )
        found[side] = file.path
    for side, other in (SIDES, SIDES[::-1]):
        if side not in found:
            raise BadInput(f"it is in {other} only: no file of that name in {side}")
    return found


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave / FULL_SCALE))))


RECIPES: dict[str, VocalPairs] = {
    recipe.recipe: recipe
    for recipe in (
        VocalPairs("vocal_pairs", 8, 48000, 262144),  # 5.5 s
        VocalPairs("vocal_pairs_demo", 8, 48000, 131072),  # 2.7 s, for two CPU cores; CNN14 needs 65,536
        VocalPairs("vocal_pairs_styles_demo", 8, 48000, 131072),
    )
}
