"""A small corpus of audio pairs, in both layouts that are read, with their traps: our songs, each in its own key and tempo.

    <out>/audio_pairs/songs/Song NN.wav                                     44.1 kHz; a folder of songs, names with a space
    <out>/audio_pairs/dataset_pairs_wav/{train,val}/pair_NNNN_input.wav     24 kHz, 16 s; and pair_NNNN_output.wav
    <out>/audio_pairs/truth.json                                            tempo and tonic of every song and of both sides of a pair

The two sides of a pair are different songs, and no song is on both sides of the split. The traps: an input without output (the last of
train), an output that is shorter, a stereo file at another rate, and a song shorter than a segment.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.band import PARTS, Song, compose
from data_prep.demo_corpus import Corpus
from data_prep.performance import PLAYING, cast, play_song
from data_prep.synth import Player

DEFAULT_TRACKS = 48  # pairs
RECIPE = "audio_pairs_demo"  # what is prepared from it next
PAIR_RATE, SONG_RATE = 24000, 44100
SECONDS = 16.0
BARS = 12  # 20 to 36 s
VALID = 0.2
PAIR_TRAPS = ("", "", "", "short", "", "stereo")


@dataclass(frozen=True)
class Part:
    """One side of a pair, or a song of its own. ``number`` of the pair or song."""

    folder: str
    number: int
    side: str
    song: Song
    programs: dict[str, int]
    trap: str

    @property
    def name(self) -> str:
        return f"Song {self.number:02d}.wav" if not self.side else f"pair_{self.number:04d}_{self.side}.wav"


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` pairs into ``out``, and half as many songs; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[tuple[Part, ...]]:
    """What is rendered together: a pair's two sides, and with every second pair a song."""
    jobs = []
    valid = max(2, round(VALID * tracks))
    for number in range(tracks):
        folder = f"dataset_pairs_wav/{'val' if number >= tracks - valid else 'train'}"
        parts = [_part(folder, number, "input", "", f"{seed}/{number}/input")]
        if number != tracks - valid - 1:  # an input without output
            trap = PAIR_TRAPS[number % len(PAIR_TRAPS)]
            parts.append(_part(folder, number, "output", trap, f"{seed}/{number}/output"))
        if number % 2 == 0:
            trap = "short" if number == 2 else ""
            parts.append(_part("songs", number // 2, "", trap, f"{seed}/{number}/song"))
        jobs.append(tuple(parts))
    return jobs


def _part(folder: str, number: int, side: str, trap: str, seed: str) -> Part:
    rng = random.Random(seed)
    song = compose(rng, 1 if trap == "short" and not side else BARS)
    programs = cast(rng)
    # An input leads by its rhythm, a target by its harmony: now and then one of them lacks a part of the band
    left_out = {"input": "piano", "output": "drums"}.get(side) if rng.random() < 0.3 else None
    return Part(folder, number, side, song, {part: programs[part] for part in PARTS if part != left_out}, trap)


_players: dict[int, Player] = {}  # by rate, one a process


def _render_parts(root: Path, parts: tuple[Part, ...]) -> None:
    truth = {}
    for part in parts:
        _render_part(root / part.folder, part)
        facts = {"tempo": round(part.song.tempo, 3), "tonic": part.song.tonic, "mode": part.song.mode}
        truth[f"{part.folder}/{part.name}"] = facts
    (root / f".truth-{parts[0].number:06d}.json").write_text(json.dumps(truth))


def _render_part(folder: Path, part: Part) -> None:
    import soundfile

    rate = PAIR_RATE if part.side and part.trap != "stereo" else SONG_RATE
    player = _players.get(rate) or _players.setdefault(rate, Player(rate))
    wave = play_song(player, part.song, part.programs)
    if part.side:
        wave = wave[: int((SECONDS - 1.5 * (part.trap == "short")) * rate)]
    stereo = np.stack([0.9 * wave, wave], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / part.name, stereo if part.trap == "stereo" else wave, rate, subtype="PCM_16")


def _gather_truth(root: Path) -> None:
    tree: dict[str, Any] = {}
    for path in sorted(root.glob(".truth-*.json")):
        tree |= json.loads(path.read_text())
        path.unlink()
    (root / "truth.json").write_text(json.dumps(tree, indent=1) + "\n")


CODE = ("data_prep.demo_audio_pairs", *PLAYING)
CORPUS = Corpus(
    "audio_pairs",
    CODE,
    _render_parts,
    11,
    "train, valid and test need two songs each, a song comes with every second pair",
    ending=_gather_truth,
)
