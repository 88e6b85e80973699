"""Pairs of recordings for Jingle_D: the input gives the rhythm, the target harmony and melody; 24 kHz, mono.

    <source>/{train,val[,test]}/pair_NNNN_input.wav + pair_NNNN_output.wav (or _target.wav), or pair_NNNN/{input,target}.wav
    <source>/**/SONG.wav (.flac, .mp3, .ogg, or all of that in <source>/songs/)

The first layout is of pairs that exist (recipe audio_pairs), the second a folder of songs (audio_pairs_songs): songs are dealt to
splits first, by their names, and then each segment of a song is paired with segments of other songs of its shard. A sample:

    input.npy, target.npy   int16 (segment,)   full scale 32768; gain 1 unless a recording would clip
    lufs.npy, peak.npy, clipped.npy, silence.npy, pad.npy   (2,)   of input and target (see ``wave_stage``)
    meta.json               of input and of target: file, start (samples), gain

Pairs that exist may have unequal lengths: what both have is used. Silent segments are left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from data_prep import levels
from data_prep.audio import FULL_SCALE, decode_at, fitting_gain, mono, pcm16, peak
from data_prep.segments import segment, segment_starts
from data_prep.splits import split_by_name
from data_prep.stage import BadInput, Fields, Input, InputFile, Samples
from data_prep.wave_stage import SHARED_CODE, WaveStage, root_of, sample_key, with_levels
from pipeline.errors import UserError

FOLDERS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
SIDES = {"input": "input", "output": "target", "target": "target"}
SIDE = re.compile(r"(?:(.+)[_\-/])(input|output|target)\.(?:wav|flac)", re.IGNORECASE)
AUDIO = (".wav", ".flac", ".mp3", ".ogg")
PAIR_LAYOUT = "{train,val}/pair_NNNN_{input,output}.wav or {train,val}/pair_NNNN/{input,target}.wav"
SHORTEST = 1.0  # seconds of a pair that are worth a sample
SILENT = 1e-3  # RMS; -60 dBFS


@dataclass(frozen=True)
class Cut:
    """A segment: int16 (segment,) out of ``file`` at sample ``start``, with ``pad`` zeros at its end and ``gain`` applied."""

    file: str
    start: int
    wave: np.ndarray
    pad: int
    gain: float


@dataclass(frozen=True)
class PairStage(WaveStage):
    """What both ways to pairs share: how one is written."""

    dataset: ClassVar[str] = "audio_pairs"
    tracks: ClassVar[tuple[str, ...]] = ("input", "target")
    default_licence: ClassVar[str] = "Your own recordings; their licence is not known here."

    def _sample(self, key: str, given: Cut, wanted: Cut) -> tuple[str, Fields]:
        measured = [levels.measure([cut.wave], self.sample_rate, cut.gain) for cut in (given, wanted)]
        meta = {
            side: {"file": cut.file, "start": cut.start, "gain": cut.gain}
            for side, cut in zip(self.tracks, (given, wanted), strict=True)
        }
        own: Fields = {"input": given.wave, "target": wanted.wave, "meta": meta}
        both = {name: np.concatenate([each[name] for each in measured]) for name in measured[0]}
        return key, with_levels(own, both, [given.pad, wanted.pad])

    def _cuts(self, file: str, audio: np.ndarray, gain: float) -> Iterator[Cut]:
        """The segments of (n,) float32."""
        scaled = pcm16(audio, gain)
        for start in segment_starts(len(scaled), self.segment):
            wave, pad = segment(scaled, start, self.segment)
            yield Cut(file, start, wave, pad, gain)


@dataclass(frozen=True)
class ExistingPairs(PairStage):
    code: ClassVar[tuple[str, ...]] = (*SHARED_CODE, "data_prep.audio_pairs:ExistingPairs")
    counted: ClassVar[dict[str, str]] = {
        "unequal": "{} pairs have sides of unequal length and were cut to what both have.",
        "silent_segments": "{} segments with a silent side were left out.",
    }

    def scan(self, source: Path) -> list[Input]:
        """A pair is an input; a file that belongs to no pair is one too, so that it ends up in the quarantine with the reason."""
        root = root_of(source, ("train", "val", "valid", "validation"), PAIR_LAYOUT)
        inputs = []
        for folder in FOLDERS:
            if not (root / folder).is_dir():
                continue
            pairs: dict[str, list[Path]] = {}
            for path in sorted((root / folder).rglob("*")):
                if path.suffix.lower() in AUDIO and path.name[0] != ".":
                    name = path.relative_to(root / folder).as_posix()
                    match = SIDE.fullmatch(name)
                    pairs.setdefault(match[1] if match else name, []).append(path)
            for pair, paths in pairs.items():
                files = tuple(InputFile(path.relative_to(source).as_posix()) for path in paths)
                inputs.append(Input(f"{folder}/{pair}", FOLDERS[folder], f"{folder}/{pair}", files))
        if not inputs:
            raise UserError(f"{root} has no audio files; expected {PAIR_LAYOUT}.")
        return inputs

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        """Each side's content; whoever made the pairs split them, and only equal files can be recognised."""
        return tuple(file.hash for file in item.files if file.hash)

    def load(self, item: Input, read: Callable[[str], bytes]) -> tuple[str, list[tuple[Cut, Cut]], bool, int]:
        sides = _sides(item)
        audio = [
            mono(decode_at(read(sides[side]), PurePosixPath(sides[side]).name, self.sample_rate))
            for side in self.tracks
        ]
        common = min(map(len, audio))
        if common < SHORTEST * self.sample_rate:
            raise BadInput(f"its sides have {common / self.sample_rate:.2f} s in common, {SHORTEST} s are needed")
        gain = fitting_gain(*(peak(wave) for wave in audio))
        cuts = [
            list(self._cuts(sides[side], wave[:common], gain)) for side, wave in zip(self.tracks, audio, strict=True)
        ]
        kept = [pair for pair in zip(*cuts, strict=True) if not any(_is_silent(cut) for cut in pair)]
        return item.name, kept, len(audio[0]) != len(audio[1]), len(cuts[0]) - len(kept)

    def assemble(
        self, loaded: Sequence[tuple[str, list[tuple[Cut, Cut]], bool, int]]
    ) -> tuple[Samples, dict[str, Any]]:
        samples: Samples = [
            self._sample(sample_key(name, pair[0].start), *pair) for name, pairs, _, _ in loaded for pair in pairs
        ]
        return self.gathered(
            samples,
            unequal=sum(unequal for _, _, unequal, _ in loaded),
            silent_segments=sum(silent for _, _, _, silent in loaded),
        )


@dataclass(frozen=True)
class SongPairs(PairStage):
    """``targets`` segments of other songs for every segment."""

    targets: int
    code: ClassVar[tuple[str, ...]] = (
        *SHARED_CODE,
        "data_prep.audio_pairs:SongPairs",
        "data_prep.splits:split_by_name",
    )
    counted: ClassVar[dict[str, str]] = {
        "songs": "{} songs; the splits share none of them.",
        "silent_segments": "{} silent segments were left out.",
        "no_partner": "{} segments lie in a shard without another song and have no pair.",
    }

    def scan(self, source: Path) -> list[Input]:
        if not source.is_dir():
            raise UserError(f"{source} is not a folder; --source is where the songs lie.")
        nested = [folder / "songs" for folder in (source, *sorted(source.iterdir())) if (folder / "songs").is_dir()]
        root = nested[0] if nested else source
        songs = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in AUDIO and path.name[0] != "."]
        if len(songs) < 2:
            raise UserError(f"{root} holds {len(songs)} songs ({', '.join(AUDIO)}); a pair needs two at least.")
        names = {path: path.relative_to(root).with_suffix("").as_posix() for path in songs}
        splits = split_by_name(names.values(), least=2)
        return [
            Input(
                path.relative_to(root).as_posix(), splits[name], name, (InputFile(path.relative_to(source).as_posix()),)
            )
            for path, name in names.items()
        ]

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        return tuple(file.hash for file in item.files if file.hash)

    def load(self, item: Input, read: Callable[[str], bytes]) -> tuple[str, list[Cut], int]:
        (file,) = item.files
        audio = mono(decode_at(read(file.path), PurePosixPath(file.path).name, self.sample_rate))
        if len(audio) < SHORTEST * self.sample_rate:
            raise BadInput(f"it lasts {len(audio) / self.sample_rate:.2f} s, {SHORTEST} s are needed")
        cuts = list(self._cuts(item.name, audio, fitting_gain(peak(audio))))
        kept = [cut for cut in cuts if not _is_silent(cut)]
        return item.group, kept, len(cuts) - len(kept)

    def assemble(self, loaded: Sequence[tuple[str, list[Cut], int]]) -> tuple[Samples, dict[str, Any]]:
        samples: Samples = []
        no_partner = 0
        for song, cuts, _ in loaded:
            others = [cut for other, theirs, _ in loaded if other != song for cut in theirs]
            for cut in cuts:
                rng = random.Random(f"{self.recipe}/{cut.file}/{cut.start}")
                for number, wanted in enumerate(rng.sample(others, min(self.targets, len(others)))):
                    samples.append(self._sample(sample_key(cut.file, cut.start, number), cut, wanted))
            no_partner += 0 if others else len(cuts)
        silent = sum(each[2] for each in loaded)
        return self.gathered(samples, songs=len(loaded), silent_segments=silent, no_partner=no_partner)


def _sides(item: Input) -> dict[str, str]:
    """Path of ``input`` and ``target``. Raises BadInput for a side that is missing, double, or none."""
    found: dict[str, str] = {}
    for file in item.files:
        match = SIDE.search(file.path)
        if match is None:
            raise BadInput(f"{PurePosixPath(file.path).name} says neither input nor output nor target")
        side = SIDES[match[2].lower()]
        if side in found:
            raise BadInput(f"it has two files for its {side}")
        found[side] = file.path
    for side in ("input", "target"):
        if side not in found:
            raise BadInput(f"it has no {side}: a pair without partner")
    return found


def _is_silent(cut: Cut) -> bool:
    return float(np.sqrt(np.mean(np.square(cut.wave, dtype=np.float64)))) < SILENT * FULL_SCALE


RECIPES: dict[str, PairStage] = {
    recipe.recipe: recipe
    for recipe in (
        ExistingPairs("audio_pairs", 128, 24000, 384000),  # 16 s: 1200 frames of EnCodec
        ExistingPairs("audio_pairs_demo", 24, 24000, 96000),  # 4 s, for two CPU cores
        SongPairs("audio_pairs_songs", 24, 24000, 384000, targets=1),
        SongPairs("audio_pairs_songs_demo", 8, 24000, 96000, targets=1),
    )
}
