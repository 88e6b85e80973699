"""A small corpus of vocal pairs, with its traps and with the truth: our melodies, sung by formants, mixed by a chain of known settings.

    <out>/vocal_pairs/raw/NAME.wav        48 kHz, mono
    <out>/vocal_pairs/mixed/NAME.wav      48 kHz, stereo, later and longer
    <out>/vocal_pairs/settings.json       for each NAME what was done to it (``effects.Settings``)

One engineer mixed them all: every song's settings lie near STYLE. The traps: a raw take without mixed partner and a mixed one without
raw, a mixed file in mono, a raw one in stereo, lengths that differ by the reverb's tail, names with spaces and a dot.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.band import Song, compose
from data_prep.demo_corpus import Corpus
from data_prep.effects import Band, Settings, process
from data_prep.performance import PLAYING
from data_prep.voice import sing

DEFAULT_TRACKS = 24
RECIPE = "vocal_pairs_demo"  # what is prepared from it next
SAMPLE_RATE = 48000
BARS = 14
TAIL = 1.5  # seconds that the mixed file is longer
OCTAVE = -12  # semitones from the lead's register to the singer's
STYLE = Settings(
    bands=(
        Band("high_pass", 90.0, 0.0, 0.7),
        Band("peak", 300.0, -3.0, 1.0),
        Band("peak", 3500.0, 4.0, 0.9),
        Band("high_shelf", 9000.0, 4.0, 0.7),
    ),
    threshold=-26.0,
    ratio=4.0,
    attack=8.0,
    release=120.0,
    make_up=5.0,
    reverb_seconds=1.2,
    reverb_send=-14.0,
    pan=0.0,
    gain=0.0,
    latency=0,
)
TRAPS = ("", "", "mono mixed", "", "stereo raw", "")
PEAK = 0.98  # of a mixed file at most


@dataclass(frozen=True)
class Take:
    name: str
    song: Song
    settings: Settings
    trap: str
    seed: str


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` pairs into ``out``; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[Take]:
    """The last two have one side only."""
    takes = []
    for i in range(tracks):
        rng = random.Random(f"{seed}/{i}")
        lonely = {tracks - 2: "raw only", tracks - 1: "mixed only"}
        trap = lonely.get(i, TRAPS[i % len(TRAPS)])
        takes.append(Take(f"{i + 1:03d}. Verse {i + 1}", compose(rng, BARS), _settings(rng), trap, f"{seed}/{i}/voice"))
    return takes


def _settings(rng: random.Random) -> Settings:
    """STYLE with a song's small deviations; the latency is that of the plug-ins, up to 85 ms."""
    bands = tuple(
        dataclasses.replace(
            band,
            hertz=round(band.hertz * 2 ** rng.uniform(-0.15, 0.15), 1),
            decibels=round(band.decibels + rng.uniform(-0.5, 0.5) * (band.decibels != 0), 2),
        )
        for band in STYLE.bands
    )
    return dataclasses.replace(
        STYLE,
        bands=bands,
        threshold=round(STYLE.threshold + rng.uniform(-2, 2), 2),
        reverb_send=round(STYLE.reverb_send + rng.uniform(-1.5, 1.5), 2),
        pan=round(rng.uniform(-0.15, 0.15), 3),
        latency=rng.choice((0, 64, 512, 1024, 2048, 4096)),
    )


def _render_take(root: Path, take: Take) -> None:
    import soundfile

    melody = [dataclasses.replace(note, pitch=note.pitch + OCTAVE) for note in take.song.parts["lead"]]
    raw = sing(melody, take.song.seconds + 0.3, SAMPLE_RATE, take.seed)
    mixed = process(raw, take.settings, SAMPLE_RATE, random.Random(take.seed).getrandbits(32), TAIL)
    trim = min(1.0, PEAK / float(np.abs(mixed).max()))
    settings = dataclasses.replace(take.settings, gain=round(20 * np.log10(trim), 3))
    for side in ("raw", "mixed"):
        (root / side).mkdir(exist_ok=True)
    if take.trap != "mixed only":
        wave = np.stack([raw, raw], axis=1) if take.trap == "stereo raw" else raw
        soundfile.write(root / "raw" / f"{take.name}.wav", wave, SAMPLE_RATE, subtype="PCM_24")
    if take.trap != "raw only":
        wave = trim * (mixed.mean(axis=0) if take.trap == "mono mixed" else mixed.T)
        soundfile.write(root / "mixed" / f"{take.name}.wav", wave, SAMPLE_RATE, subtype="PCM_16")
    (root / f".settings-{take.name}.json").write_text(json.dumps({take.name: dataclasses.asdict(settings)}))


def _gather_settings(root: Path) -> None:
    tree = {}
    for path in sorted(root.glob(".settings-*.json")):
        tree |= json.loads(path.read_text())
        path.unlink()
    (root / "settings.json").write_text(json.dumps(tree, indent=1) + "\n")


CODE = ("data_prep.demo_vocal_pairs", *PLAYING, "data_prep.voice", "data_prep.effects")
CORPUS = Corpus(
    "vocal_pairs",
    CODE,
    _render_take,
    5,
    "three pairs for three splits, and two that lack a side",
    "Demo corpus rendered by data_prep/demo.py: melodies of its own composition, sung by a synthesiser of its own.",
    _gather_settings,
)
