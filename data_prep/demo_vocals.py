"""What both demo corpora of vocals share: a take sung by formants, coloured by its microphone, mixed by a chain of known settings.

    <out>/<corpus>/raw/NAME.wav        48 kHz, mono
    <out>/<corpus>/mixed/NAME.wav      48 kHz, stereo, later and longer
    <out>/<corpus>/settings.json       for each NAME what was done to it (``effects.Settings``)

The traps: a raw take without mixed partner and a mixed one without raw, a mixed file in mono, a raw one in stereo, lengths that differ by
the reverb's tail, names with spaces and a dot.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.band import Song, compose
from data_prep.demo_corpus import Corpus
from data_prep.effects import Band, Settings, biquad, process
from data_prep.performance import PLAYING
from data_prep.voice import sing

DEFAULT_TRACKS = 96
SAMPLE_RATE = 48000
BARS = 6  # 10 to 18 s
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
LATENCIES = (0, 64, 512, 1024, 2048, 4096)  # samples; plug-ins', up to 85 ms
TRAPS = ("", "", "mono mixed", "", "stereo raw", "")
PEAK = 0.98  # of a mixed file at most
TAKE_PEAK = 0.5  # of a raw one


@dataclass(frozen=True)
class Take:
    """``colour``: what microphone and room add to the voice before anyone mixes it."""

    name: str
    song: Song
    colour: tuple[Band, ...]
    settings: Settings
    trap: str
    seed: str


Drawn = tuple[tuple[Band, ...], Settings]


def planned(tracks: int, seed: int, draw: Callable[[random.Random], Drawn]) -> list[Take]:
    """``draw`` decides a song's colour and settings. The last two takes have one side only."""
    takes = []
    for i in range(tracks):
        rng = random.Random(f"{seed}/{i}")
        lonely = {tracks - 2: "raw only", tracks - 1: "mixed only"}
        trap = lonely.get(i, TRAPS[i % len(TRAPS)])
        song = compose(rng, BARS)
        colour, settings = draw(rng)
        settings = dataclasses.replace(
            settings,
            latency=rng.choice(LATENCIES),
            pan=0.0 if trap == "mono mixed" else settings.pan,
        )
        takes.append(Take(f"{i + 1:03d}. Verse {i + 1}", song, colour, settings, trap, f"{seed}/{i}/voice"))
    return takes


def corpus(top: str, module: str) -> Corpus:
    """The corpus ``top`` that ``module`` plans."""
    return Corpus(
        top,
        (module, "data_prep.demo_vocals", *PLAYING, "data_prep.voice", "data_prep.effects"),
        render_take,
        5,
        "three pairs for three splits, and two that lack a side",
        "Demo corpus rendered by data_prep/demo.py: melodies of its own composition, sung by a synthesiser of its own.",
        gather_settings,
    )


def raw_take(take: Take) -> np.ndarray:
    """(n,) float64: the melody as it was sung and recorded, peak TAKE_PEAK."""
    from scipy.signal import sosfilt

    melody = [dataclasses.replace(note, pitch=note.pitch + OCTAVE) for note in take.song.parts["lead"]]
    voice = sing(melody, take.song.seconds + 0.3, SAMPLE_RATE, take.seed)
    if take.colour:
        voice = sosfilt(np.stack([biquad(band, SAMPLE_RATE) for band in take.colour]), voice)
    return TAKE_PEAK / max(float(np.abs(voice).max()), 1e-9) * voice


def render_take(root: Path, take: Take) -> None:
    import soundfile

    raw = raw_take(take)
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


def gather_settings(root: Path) -> None:
    tree: dict[str, Any] = {}
    for path in sorted(root.glob(".settings-*.json")):
        tree |= json.loads(path.read_text())
        path.unlink()
    (root / "settings.json").write_text(json.dumps(tree, indent=1) + "\n")
