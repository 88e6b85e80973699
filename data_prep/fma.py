"""FMA, the Free Music Archive, for CQTML: five-second segments of its clips with their constant-Q transform and genre.

    <source>/fma_{small,medium,large,full}/NNN/NNNNNN.mp3
    <source>/fma_metadata/tracks.csv          two header rows: column ('set', 'split') is training, validation or test

A sample has the fields of ``cqt_stage`` and:

    genre.npy   int64 ()   index into info["genres"], -1 where the clip has no top genre
    meta.json   track, artist, genre, licence, start (samples)

Splits are FMA's own, which share no artist; that is checked. Clips are decoded to their end, since their headers lie; those without audio
(99134, 108925 and 133297 of fma_small) are quarantined. Source: Defferrard, Benzi, Vandergheynst, Bresson, "FMA: a dataset for music
analysis" (2017).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from data_prep.audio import decode, mono, resample
from data_prep.cqt_stage import CQT_CODE, CqtStage, collect
from data_prep.stage import BadInput, Fields, Input, InputFile, Samples
from data_prep.wave_stage import root_of, sample_key
from pipeline.errors import UserError

SUBSETS = ("fma_small", "fma_medium", "fma_large", "fma_full")
SPLITS = {"training": "train", "validation": "valid", "test": "test"}
COLUMNS = (("set", "split"), ("artist", "id"), ("track", "genre_top"), ("track", "license"))
LAYOUT = "fma_small/NNN/NNNNNN.mp3 and fma_metadata/tracks.csv"
NOT_LISTED = "?"  # stands for the split of a clip that tracks.csv does not have
WHOLE_FILE = 1 << 16  # bytes; the stubs of clips without audio are smaller, and alike
SHORTEST = 1.0  # seconds of a clip that are worth a sample
GENRES = (
    "Blues", "Classical", "Country", "Easy Listening", "Electronic", "Experimental", "Folk", "Hip-Hop", "Instrumental",
    "International", "Jazz", "Old-Time / Historic", "Pop", "Rock", "Soul-RnB", "Spoken",
)  # fmt: skip


@dataclass(frozen=True)
class FmaCqt(CqtStage):
    dataset: ClassVar[str] = "fma"
    default_licence: ClassVar[str] = (
        "FMA: metadata under Creative Commons Attribution 4.0; each clip under its artist's own licence (`licence` in meta)."
    )
    code: ClassVar[tuple[str, ...]] = (*CQT_CODE, "data_prep.fma:FmaCqt")
    counted: ClassVar[dict[str, str]] = {
        "clips": "{} clips; the splits share no artist.",
        "no_genre": "{} of them have no top genre: `genre` is -1.",
        "silent_segments": "{} silent segments were left out.",
    }

    def scan(self, source: Path) -> list[Input]:
        root = root_of(source, SUBSETS, LAYOUT)
        table = read_tracks(root)
        inputs = []
        for subset in SUBSETS:
            for path in sorted((root / subset).glob("[0-9][0-9][0-9]/*.mp3")):
                if not path.stem.isdigit():
                    continue
                split, artist, genre, licence = table.get(int(path.stem), (NOT_LISTED, f"of {path.stem}", "", ""))
                files = (InputFile(path.relative_to(source).as_posix()),)
                name = f"{int(path.stem):06d}"
                facts = (split, artist, genre, licence)
                inputs.append(Input(name, SPLITS.get(split, "train"), f"artist {artist}", files, facts))
        if not inputs:
            raise UserError(f"{root} has no clips; expected {LAYOUT}.")
        return list({item.name: item for item in reversed(inputs)}.values())  # small lies within medium: each clip once

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        return tuple(file.hash for file in item.files if file.size > WHOLE_FILE)

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        return super().info(summaries, samples) | {"genres": list(GENRES)}

    def load(self, item: Input, read: Callable[[str], bytes]) -> tuple[Samples, int, bool]:
        split, artist, genre, licence = item.facts
        if split not in SPLITS:
            raise BadInput(
                "tracks.csv does not list it" if split == NOT_LISTED else f"tracks.csv puts it into a split '{split}'"
            )
        if genre and genre not in GENRES:
            raise BadInput(f"tracks.csv gives it a genre that FMA does not have: '{genre}'")
        (file,) = item.files
        audio, rate = decode(read(file.path), PurePosixPath(file.path).name)
        if audio.shape[1] < SHORTEST * rate:
            raise BadInput(f"it lasts {audio.shape[1] / rate:.2f} s, {SHORTEST} s are needed")
        wave = resample(mono(audio)[None], rate, self.sample_rate)[0]

        def more(start: int) -> Fields:
            meta = {"track": item.name, "artist": artist, "genre": genre, "licence": licence, "start": start}
            return {"genre": np.asarray(GENRES.index(genre) if genre else -1, np.int64), "meta": meta}

        samples, silent, _ = collect(list(self.segments(wave)), lambda start: sample_key(item.name, start), more)
        return samples, silent, not genre

    def assemble(self, loaded: Sequence[tuple[Samples, int, bool]]) -> tuple[Samples, dict[str, Any]]:
        samples = [sample for each, _, _ in loaded for sample in each]
        return self.with_moments(
            samples,
            clips=len(loaded),
            no_genre=sum(no_genre for _, _, no_genre in loaded),
            silent_segments=sum(silent for _, silent, _ in loaded),
        )


def read_tracks(root: Path) -> dict[int, tuple[str, str, str, str]]:
    """Track id -> split, artist id, top genre, licence from tracks.csv. UserError where it is missing or has no two-row header."""
    path = next((p for p in (root / "fma_metadata/tracks.csv", root / "tracks.csv") if p.is_file()), None)
    if path is None:
        raise UserError(f"{root} has no fma_metadata/tracks.csv, which says the splits; it comes in fma_metadata.zip.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = list(zip(next(rows, []), next(rows, []), strict=False))
        missing = [f"{group}/{name}" for group, name in COLUMNS if (group, name) not in header]
        if missing:
            raise UserError(
                f"{path} has no column {', '.join(missing)} in its two header rows; it is not FMA's tracks.csv."
            )
        places = [header.index(column) for column in COLUMNS]
        table = {}
        for row in rows:
            if row and row[0].isdigit() and len(row) > max(places):  # the third row holds the index's name alone
                split, artist, genre, licence = (row[place].strip() for place in places)
                table[int(row[0])] = (split, artist, genre, licence)
    return table


RECIPES: dict[str, FmaCqt] = {
    recipe.recipe: recipe
    for recipe in (
        FmaCqt("fma_cqt", 48, 22050, 110250),  # 5 s: 1723 frames
        FmaCqt("fma_cqt_demo", 12, 22050, 55125),  # 2.5 s, for two CPU cores
    )
}
