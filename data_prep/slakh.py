"""Slakh2100: bass, drums, guitar and piano of one song at 44.1 kHz, for CD4MT.

    <source>/{train,validation,test}/TrackNNNNN/{metadata.yaml, all_src.mid, stems/SNN.flac}     as it is published
    <source>/{train,validation,test}/TrackNNNNN/{bass,drums,guitar,piano}.wav                    slakh_44100, as it is often kept

A sample is one segment, S = 4 stems in the order of STEMS; their sum is the mixture:

    stems.npy       int16 (S, segment)   full scale 32768; one gain for all stems of a track, 1 unless they would clip
    present.npy     bool (S,)            False where the track has no such instrument; the stem is then silent
    lufs.npy, peak.npy, clipped.npy, silence.npy   (S + 1,)   of the stems and of the mixture (see ``levels.measure``)
    pad.npy         int64 ()             zeros appended, in samples
    meta.json       track, folder (the split it was found in), start (samples), gain, unrendered (stems that exist as MIDI only)

A stem is the sum of all sources of its class by General MIDI program. Tracks that share their MIDI (the UUID, or the bytes of
all_src.mid) are one group; a group that the folders tear apart goes to train, so that nothing is tested on a song it was trained on.
Segments in which all stems are silent are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from data_prep import levels
from data_prep.segments import segment, segment_starts
from data_prep.slakh_reader import AUDIO, METADATA, MIDI, STEMS, midi_identity, read_stems, torn_groups, track_files
from data_prep.splits import connected
from data_prep.stage import Fields, Input, InputFile, Samples
from data_prep.wave_stage import SHARED_CODE, WaveStage, root_of, sample_key, with_levels
from pipeline.errors import UserError

FOLDERS = {"train": "train", "validation": "valid", "test": "test"}
LAYOUT = "{train,validation,test}/TrackNNNNN/{metadata.yaml, all_src.mid, stems/} or .../{bass,drums,guitar,piano}.wav"
TRACK_NAME = re.compile(r"Track\d+")


@dataclass(frozen=True)
class Song:
    """``stems`` int16 (S, n) with ``gain`` applied; ``present`` bool (S,); ``facts`` go into every sample's meta."""

    name: str
    stems: np.ndarray
    present: np.ndarray
    gain: float
    facts: dict[str, Any]
    moved: bool
    anonymous: bool


@dataclass(frozen=True)
class SlakhStems(WaveStage):
    dataset: ClassVar[str] = "slakh"
    tracks: ClassVar[tuple[str, ...]] = (*STEMS, "mixture")
    default_licence: ClassVar[str] = (
        "Slakh2100: Manilow, Wichern, Seetharaman, Le Roux, Creative Commons Attribution 4.0 (zenodo.org/records/4599666)."
    )
    code: ClassVar[tuple[str, ...]] = (*SHARED_CODE, "data_prep.slakh:SlakhStems", "data_prep.slakh_reader:read_stems")
    counted: ClassVar[dict[str, str]] = {
        "absent": "{} stems are absent, because their track has no such instrument: silent, and marked in `present`.",
        "moved": "{} tracks went to train, because a track with the same MIDI lies in another split's folder.",
        "anonymous": "{} tracks came without metadata and MIDI: their twins, if any, are unknown, and they stayed in their folders.",
        "silent_segments": "{} segments in which all stems are silent were left out.",
    }

    def scan(self, source: Path) -> list[Input]:
        root = root_of(source, FOLDERS, LAYOUT)
        folders = {
            f"{split}/{folder.name}": folder
            for split in FOLDERS
            if (root / split).is_dir()
            for folder in sorted((root / split).iterdir())
            if folder.is_dir() and TRACK_NAME.fullmatch(folder.name)
        }
        if not folders:
            raise UserError(f"{root} has no track folder; expected {LAYOUT}.")
        groups = connected({name: (f"name {folder.name}", *midi_identity(folder)) for name, folder in folders.items()})
        torn = torn_groups([(group, name.split("/")[0]) for name, group in groups.items()])
        return [
            Input(
                folder.name,
                "train" if groups[name] in torn else FOLDERS[folder.parent.name],
                groups[name],
                tuple(InputFile(path.relative_to(source).as_posix()) for path in track_files(folder)),
            )
            for name, folder in folders.items()
        ]

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        """All stems' contents: the same recording under another name has the same."""
        stems = sorted(f.hash for f in item.files if PurePosixPath(f.path).suffix in AUDIO and f.hash)
        return ("/".join(stems),) if stems else ()

    def load(self, item: Input, read: Callable[[str], bytes]) -> Song:
        stems = read_stems(item, read, self.sample_rate)
        folder = next(part for part in PurePosixPath(item.files[0].path).parts if part in FOLDERS)
        names = {PurePosixPath(file.path).name for file in item.files}
        return Song(
            item.name,
            stems.waves,
            np.array([stem in stems.there for stem in STEMS]),
            stems.gain,
            {"track": item.name, "folder": folder, "gain": stems.gain, "unrendered": list(stems.unrendered)},
            FOLDERS[folder] != item.split,
            not names & {METADATA, MIDI},
        )

    def assemble(self, loaded: Sequence[Song]) -> tuple[Samples, dict[str, Any]]:
        samples: Samples = []
        silent = 0
        for song in loaded:
            for start in segment_starts(song.stems.shape[1], self.segment):
                stems, pad = segment(song.stems, start, self.segment)
                if not stems.any():
                    silent += 1
                    continue
                measured = levels.measure([*stems], self.sample_rate, song.gain, mixed=True)
                own: Fields = {"stems": stems, "present": song.present, "meta": {**song.facts, "start": start}}
                key = sample_key(f"{song.facts['folder']}-{song.name}", start)
                samples.append((key, with_levels(own, measured, pad)))
        return self.gathered(
            samples,
            absent=sum(int((~song.present).sum()) for song in loaded),
            moved=sum(song.moved for song in loaded),
            anonymous=sum(song.anonymous for song in loaded),
            silent_segments=silent,
        )


RECIPES: dict[str, SlakhStems] = {
    recipe.recipe: recipe
    for recipe in (
        # 127 latent frames of music2latent: 1024 * 512 samples, 11.9 s
        SlakhStems("slakh_stems", 4, 44100, 524288),
        # For two CPU cores: 3.0 s
        SlakhStems("slakh_stems_demo", 4, 44100, 131072),
        # For codecs of 16 kHz: 2.0 s, a bar of the demo corpus
        SlakhStems("slakh_stems_16k_demo", 4, 16000, 32000),
    )
}
