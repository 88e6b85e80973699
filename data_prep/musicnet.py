"""MusicNet for CQTML: five-second segments of classical recordings with their constant-Q transform and every note in them.

    <source>/{train,test}_data/ID.wav      44.1 kHz
    <source>/{train,test}_labels/ID.csv    start_time and end_time are sample indices at 44.1 kHz, whatever the file's rate
    <source>/musicnet_metadata.csv         composer and composition by ID; optional

A sample has the fields of ``cqt_stage`` and:

    notes.npy        int32 (512, 4)   start, end (samples of this segment at 22,050 Hz; notes reach over its ends), MIDI number, and
                                      instrument (General MIDI program counted from 1); by start; rows of -1 after the last
    note_count.npy   int64 ()
    meta.json        recording, composer, composition, movement, ensemble, start (samples)

The test split is MusicNet's own. To validate, a tenth of the training compositions is set aside, all movements of one together. Source:
Thickstun, Harchaoui, Kakade, "Learning features of music from scratch" (2017).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from data_prep.audio import decode_at, mono
from data_prep.cqt_stage import CQT_CODE, CqtStage, collect
from data_prep.splits import split_by_name
from data_prep.stage import BadInput, Fields, Input, InputFile, Samples
from data_prep.wave_stage import root_of, sample_key
from pipeline.errors import UserError

FOLDERS = ("train", "test")
LAYOUT = "{train,test}_data/ID.wav and {train,test}_labels/ID.csv"
LABEL_RATE = 44100  # of start_time and end_time
COLUMNS = ("start_time", "end_time", "instrument", "note")
METADATA = ("composer", "composition", "movement", "ensemble")
MOST_NOTES = 512  # in a segment
LATE_BY = 1.0  # seconds that labels may reach beyond the audio


@dataclass(frozen=True)
class MusicNetCqt(CqtStage):
    dataset: ClassVar[str] = "musicnet"
    default_licence: ClassVar[str] = (
        "MusicNet: labels under Creative Commons Attribution 4.0; recordings in the public domain or under Creative Commons "
        "(zenodo.org/records/5120004)."
    )
    code: ClassVar[tuple[str, ...]] = (*CQT_CODE, "data_prep.musicnet:MusicNetCqt", "data_prep.splits:split_by_name")
    counted: ClassVar[dict[str, str]] = {
        "recordings": "{} recordings.",
        "notes": "{} notes lie in the segments, those on a boundary in both.",
        "silent_segments": "{} silent segments were left out.",
        "too_dense": f"{{}} segments with more than {MOST_NOTES} notes were left out.",
    }

    def scan(self, source: Path) -> list[Input]:
        root = root_of(source, [f"{folder}_data" for folder in FOLDERS], LAYOUT)
        facts = _read_metadata(root)
        found = []
        for folder in FOLDERS:
            labels = {path.stem: path for path in (root / f"{folder}_labels").glob("*.csv")}
            for path in sorted((root / f"{folder}_data").glob("*.wav")):
                files = [path] + ([labels[path.stem]] if path.stem in labels else [])
                listed = tuple(InputFile(file.relative_to(source).as_posix()) for file in files)
                about = facts.get(path.stem, ("", "", "", ""))
                # Movements of one composition lie in train and in test, as the authors split them: test is a group a recording
                group = "/".join(about[:2]) if folder == "train" and about[1] else f"{folder} {path.stem}"
                found.append(Input(path.stem, folder, group, listed, about))
        if not found:
            raise UserError(f"{root} has no recordings; expected {LAYOUT}.")
        dealt = split_by_name(item.group for item in found if item.split == "train")
        return [
            Input(i.name, "valid" if dealt.get(i.group) == "valid" else i.split, i.group, i.files, i.facts)
            for i in found
        ]

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        return tuple(file.hash for file in item.files if file.path.endswith(".wav") and file.hash)

    def load(self, item: Input, read: Callable[[str], bytes]) -> tuple[Samples, dict[str, int]]:
        paths = {PurePosixPath(file.path).suffix: file.path for file in item.files}
        if ".csv" not in paths:
            raise BadInput(f"it has no labels: no file {item.name}.csv beside its folder")
        notes = read_notes(read(paths[".csv"]), self.sample_rate)
        audio = mono(decode_at(read(paths[".wav"]), f"{item.name}.wav", self.sample_rate))
        end, seconds = notes[:, 1].max(initial=0) / self.sample_rate, len(audio) / self.sample_rate
        if end > seconds + LATE_BY:
            raise BadInput(f"its labels end at {end:.2f} s, its audio at {seconds:.2f} s")

        def more(start: int) -> Fields | None:
            heard = notes[(notes[:, 1] > start) & (notes[:, 0] < start + self.segment)]
            if len(heard) > MOST_NOTES:
                return None
            table = np.full((MOST_NOTES, 4), -1, np.int32)
            table[: len(heard)] = heard - np.array([start, start, 0, 0])
            about = dict(zip(METADATA, item.facts, strict=True))
            meta = {"recording": item.name, **about, "start": start}
            return {"notes": table, "note_count": np.asarray(len(heard), np.int64), "meta": meta}

        parts = list(self.segments(audio))
        samples, silent, dense = collect(parts, lambda start: sample_key(item.name, start), more)
        return samples, {"silent_segments": silent, "too_dense": dense}

    def assemble(self, loaded: Sequence[tuple[Samples, dict[str, int]]]) -> tuple[Samples, dict[str, Any]]:
        samples = [sample for each, _ in loaded for sample in each]
        counts = {key: sum(each[key] for _, each in loaded) for key in ("silent_segments", "too_dense")}
        notes = sum(int(np.asarray(fields["note_count"])) for _, fields in samples)
        return self.with_moments(samples, recordings=len(loaded), notes=notes, **counts)


def read_notes(raw: bytes, rate: int) -> np.ndarray:
    """int64 (notes, 4): start, end (samples at ``rate``), MIDI number, instrument; by start. Raises BadInput."""
    rows = csv.DictReader(io.StringIO(raw.decode("utf-8", errors="replace")))
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise BadInput(f"its labels have no column {', '.join(missing)}")
    try:
        table = [[int(row[column]) for column in ("start_time", "end_time", "note", "instrument")] for row in rows]
    except (TypeError, ValueError):
        raise BadInput("its labels hold something that is not a whole number") from None
    notes = np.array(table, np.int64).reshape(-1, 4)
    if (notes[:, 0] > notes[:, 1]).any() or ((notes[:, 2] < 0) | (notes[:, 2] > 127)).any():
        raise BadInput("its labels hold a note that ends before it begins, or is no MIDI number")
    notes[:, :2] = np.rint(notes[:, :2] * (rate / LABEL_RATE))
    return notes[np.lexsort((notes[:, 3], notes[:, 2], notes[:, 0]))]


def _read_metadata(root: Path) -> dict[str, tuple[str, ...]]:
    """ID -> METADATA; empty where the table is not there."""
    path = root / "musicnet_metadata.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            row["id"]: tuple(row.get(column) or "" for column in METADATA)
            for row in csv.DictReader(file)
            if "id" in row
        }


RECIPES: dict[str, MusicNetCqt] = {
    recipe.recipe: recipe
    for recipe in (
        MusicNetCqt("musicnet_cqt", 4, 22050, 110250),  # 5 s: 1723 frames
        MusicNetCqt("musicnet_cqt_demo", 4, 22050, 55125),  # 2.5 s, for two CPU cores
    )
}
