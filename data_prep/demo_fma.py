"""A small corpus in FMA's real layout, with its traps: clips of 30 s of our songs, as MP3.

    <out>/fma/fma_small/NNN/NNNNNN.mp3        44.1 kHz, every fourth in stereo
    <out>/fma/fma_metadata/tracks.csv         two header rows; also lists tracks that are not in fma_small

A genre has its own band and tempo, an artist two or three tracks in one split. The traps: a clip without audio, one of 6 s, one whose tag
promises five minutes, one that tracks.csv does not list, and a genre with a space in its name.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.band import BAR, Song, compose
from data_prep.demo_corpus import Corpus, shares
from data_prep.performance import PLAYING, cast, play_song
from data_prep.synth import Player

DEFAULT_TRACKS = 32
RECIPE = "fma_cqt_demo"  # what is prepared from it next
SAMPLE_RATE = 44100
SECONDS = 30.0
FIRST_NUMBER = 2
TRACKS_AN_ARTIST = 2
STEREO_EVERY = 4
STYLES = {  # genre -> tempo, parts of the band
    "Rock": (120.0, ("drums", "bass", "guitar", "lead")),
    "Easy Listening": (84.0, ("bass", "piano", "lead")),
    "Electronic": (132.0, ("drums", "bass", "piano")),
    "Folk": (100.0, ("guitar", "lead")),
}
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
TRAPS = {3: "no audio", 4: "short", 5: "long tag", 6: "not listed"}
LICENCE_OF_A_TRACK = "Attribution"


@dataclass(frozen=True)
class Clip:
    number: int
    split: str
    artist: int
    genre: str
    song: Song
    programs: dict[str, int]
    trap: str


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` clips into ``out``; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[Clip]:
    clips: list[Clip] = []
    artist = 0
    for split, count in shares(tracks, 0.15, 0.15, least=2):
        for i in range(count):
            artist += i % TRACKS_AN_ARTIST == 0
            number = FIRST_NUMBER + len(clips)
            rng = random.Random(f"{seed}/{number}")
            genre = tuple(STYLES)[artist % len(STYLES)]
            tempo, parts = STYLES[genre]
            tempo *= rng.uniform(0.95, 1.05)
            song = compose(rng, math.ceil(SECONDS / (BAR * 60 / tempo)), tempo=tempo)
            programs = {part: program for part, program in cast(rng).items() if part in parts}
            clips.append(Clip(number, split, artist, genre, song, programs, TRAPS.get(number, "")))
    return clips


_player: Player | None = None  # one a process


def _render_clip(root: Path, clip: Clip) -> None:
    global _player
    import soundfile

    folder = root / "fma_small" / f"{clip.number // 1000:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{clip.number:06d}.mp3"
    (root / f".track-{clip.number:06d}.json").write_text(json.dumps([clip.split, clip.artist, clip.genre, clip.trap]))
    if clip.trap == "no audio":
        path.write_bytes(id3_tag(30_000))
        return
    _player = _player or Player(SAMPLE_RATE)
    wave = play_song(_player, clip.song, clip.programs)
    wave = wave[: int((6.0 if clip.trap == "short" else SECONDS) * SAMPLE_RATE)]
    stereo = np.stack([wave, 0.8 * wave], axis=1)
    soundfile.write(path, stereo if clip.number % STEREO_EVERY == 0 else wave, SAMPLE_RATE, format="MP3")
    if clip.trap == "long tag":
        path.write_bytes(id3_tag(300_000) + path.read_bytes())


def id3_tag(milliseconds: int) -> bytes:
    """An ID3v2.3 tag with one frame, TLEN, which claims a length."""
    text = b"\0" + str(milliseconds).encode()
    frame = b"TLEN" + len(text).to_bytes(4, "big") + b"\0\0" + text
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame


def _write_table(root: Path) -> None:
    """Columns as in the real file, in which many more lie between; the rows of fma_medium have no clip here."""
    columns = (("album", "id"), ("artist", "id"), ("set", "split"), ("set", "subset"), ("track", "genre_top"),
               ("track", "license"))  # fmt: skip
    (root / "fma_metadata").mkdir()
    with (root / "fma_metadata/tracks.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["", *(group for group, _ in columns)])
        rows.writerow(["", *(name for _, name in columns)])
        rows.writerow(["track_id", *("" for _ in columns)])
        for path in sorted(root.glob(".track-*.json")):
            split, artist, genre, trap = json.loads(path.read_text())
            number = int(path.stem.split("-")[1])
            path.unlink()
            if trap != "not listed":
                rows.writerow([number, artist, artist, SPLITS[split], "small", genre, LICENCE_OF_A_TRACK])
        for number in (900_001, 900_002):
            rows.writerow([number, number, number, "training", "medium", "", LICENCE_OF_A_TRACK])


CODE = ("data_prep.demo_fma", *PLAYING)
CORPUS = Corpus("fma", CODE, _render_clip, 10, "four clips are traps, and each split needs two", ending=_write_table)
