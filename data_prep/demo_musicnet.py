"""A small corpus in MusicNet's real layout, with its traps: our chorales, played by string quartets, winds and a piano.

    <out>/musicnet/{train,test}_data/ID.wav       44.1 kHz, mono
    <out>/musicnet/{train,test}_labels/ID.csv     start_time, end_time in samples at 44.1 kHz, instrument, note, beats, value
    <out>/musicnet/musicnet_metadata.csv

A composition has two movements, which stay in one split. The trap: a recording of train without labels (the second).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.chorales import Chorale, compose
from data_prep.demo_corpus import Corpus
from data_prep.synth import Player

DEFAULT_TRACKS = 24
RECIPE = "musicnet_cqt_demo"  # what is prepared from it next
SAMPLE_RATE = 44100
CHORDS = 40
TAIL = 0.8  # seconds after the last release
PEAK = 0.8
FIRST_ID = 1727
TEST_SHARE = 0.2
ENSEMBLES = {  # General MIDI programs from 0, soprano to bass
    "String Quartet": (40, 40, 41, 42),
    "Wind Quartet": (73, 68, 71, 70),
    "Solo Piano": (0, 0, 0, 0),
}
COLUMNS = ("start_time", "end_time", "instrument", "note", "start_beat", "end_beat", "note_value")


@dataclass(frozen=True)
class Recording:
    number: int
    folder: str
    composition: int
    movement: int
    ensemble: str
    chorale: Chorale
    labelled: bool


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` recordings into ``out``; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[Recording]:
    test = max(1, round(TEST_SHARE * tracks))
    recordings = []
    for i in range(tracks):
        rng = random.Random(f"{seed}/{i}")
        folder = "test" if i >= tracks - test else "train"
        ensemble = tuple(ENSEMBLES)[i // 2 % len(ENSEMBLES)]
        chorale = compose(rng, CHORDS, (5 * i) % 12)
        recordings.append(Recording(FIRST_ID + i, folder, i // 2, i % 2, ensemble, chorale, labelled=i != 1))
    return recordings


_player: Player | None = None  # one a process


def _render_recording(root: Path, recording: Recording) -> None:
    global _player
    import soundfile

    _player = _player or Player(SAMPLE_RATE)
    chorale = recording.chorale
    voices = list(zip(chorale.voices, ENSEMBLES[recording.ensemble], strict=True))
    mixture = np.sum([_player.play(notes, program, chorale.seconds + TAIL) for notes, program in voices], axis=0)
    for part in ("data", "labels"):
        (root / f"{recording.folder}_{part}").mkdir(exist_ok=True)
    wave = PEAK / float(np.abs(mixture).max()) * mixture
    soundfile.write(root / f"{recording.folder}_data/{recording.number}.wav", wave, SAMPLE_RATE, subtype="PCM_16")
    if recording.labelled:
        _write_labels(root / f"{recording.folder}_labels/{recording.number}.csv", chorale, voices)
    about = root / f".about-{recording.number}.csv"
    about.write_text(
        f"{recording.number},Demo,Chorale No {recording.composition + 1},{recording.movement + 1},{recording.ensemble}\n"
    )


def _write_labels(path: Path, chorale: Chorale, voices: list) -> None:
    beat = 60 / chorale.tempo
    rows = sorted((note.start, note.end, program + 1, note.pitch) for notes, program in voices for note in notes)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for start, end, instrument, pitch in rows:
            samples = (round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
            beats = (round(start / beat, 3), round(end / beat, 3))
            table.writerow([*samples, instrument, pitch, *beats, "Quarter"])


def _write_table(root: Path) -> None:
    lines = ["id,composer,composition,movement,ensemble\n"]
    for path in sorted(root.glob(".about-*.csv")):
        lines.append(path.read_text())
        path.unlink()
    (root / "musicnet_metadata.csv").write_text("".join(lines))


CODE = ("data_prep.demo_musicnet", "data_prep.chorales", "data_prep.synth:Player")
CORPUS = Corpus(
    "musicnet",
    CODE,
    _render_recording,
    8,
    "train needs three compositions of two movements, so that one can be set aside to validate",
    ending=_write_table,
)
