"""The pairs of a run as raters are shown them: a song and two light shows, from the dataset in RUN/pairs/.

A sample holds ``audio`` int16 (n), mono; ``a`` and ``b``, brightness (4, T) in 0..1; and ``meta`` with ``input``, ``sample_rate`` and
``frame_rate`` in Hz, and ``left``, the side that is shown on the left (where it says nothing: a). What else it says (temperatures, weights)
is no rater's business and does not leave this module.
"""

from __future__ import annotations

import io
import math
import threading
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.choices import PAIRS
from pipeline.config import read_yaml
from pipeline.errors import UserError
from pipeline.light_show.page import pack
from pipeline.manifest import MANIFEST, SPLITS, Manifest, read_manifest
from pipeline.runs import RunFolder
from pipeline.samples import SplitReader
from pipeline.shards import DamagedSample, ShardReader

TOLERANCE = 0.5  # seconds by which light may be shorter or longer than the music
LIGHTS = "cqtml"  # the system that makes them
KEPT = 16  # pairs in memory: a browser asks for a song in several pieces


class Unreadable(Exception):
    """A pair that cannot be shown; the message says which and why."""


@dataclass(frozen=True)
class Show:
    """One side of a pair: "a" or "b", and its packed curves."""

    side: str
    lights: str


@dataclass(frozen=True)
class Pair:
    """What a rater sees and hears. ``wav``: the song as a WAV file; ``frame_rate`` of the lights in Hz."""

    key: str
    song: str
    seconds: float
    frame_rate: float
    left: Show
    right: Show
    wav: bytes


class Pairs:
    """All pairs of a run, for any number of threads. ``keys`` are in the order in which every rater is shown them.

    The splits come in proportion, so that who stops early has rated some of each. UserError where the run has no pairs.
    """

    def __init__(self, run: Path, name: str) -> None:
        folder, make = run / PAIRS, f"python jobs/generate.py {name} --pairs 200"
        if not (folder / MANIFEST).is_file():
            raise UserError(_without_pairs(run, name, make))
        try:
            manifest = read_manifest(folder)
        except UserError as error:
            raise UserError(
                f"{folder / MANIFEST} is damaged or of another version; make pairs anew with: {make}"
            ) from error
        self._readers = {split: SplitReader(manifest, split) for split in SPLITS}
        self._lock = threading.Lock()
        self._places, self.trouble = _places(manifest)
        if not self._places:
            raise UserError(f"{folder} holds no pair that can be read; make some with: {make}")
        self.keys = list(self._places)
        self._read = lru_cache(KEPT)(self._load)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def read(self, key: str) -> Pair:
        """Raises Unreadable; KeyError where there is no such pair."""
        with self._lock:
            return self._read(key)

    def _load(self, key: str) -> Pair:
        split, number = self._places[key]
        try:
            return _pair(key, self._readers[split].sample(number))
        except DamagedSample as error:
            raise Unreadable(f"pair {key} is left out: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise Unreadable(f"pair {key} is left out: {type(error).__name__}: {error}") from error


def _without_pairs(run: Path, name: str, make: str) -> str:
    config = RunFolder(run).config_file
    system = read_yaml(config)["model"]["system"] if config.is_file() else LIGHTS
    if system != LIGHTS:
        return f"{name} is a run of {system}, and what is compared are light shows: name a run of {LIGHTS}."
    return f"{name} has no pairs to compare yet ({run / PAIRS / MANIFEST} is missing); make some with: {make}"


def _places(manifest: Manifest) -> tuple[dict[str, tuple[str, int]], list[str]]:
    """Split and number of each pair by key, in the order of showing, and a sentence for each shard that cannot be opened."""
    found: list[tuple[float, str, int, str]] = []
    trouble: list[str] = []
    for split in SPLITS:
        first, count = 0, manifest.samples(split)
        for info in manifest.split(split):
            try:
                shard = ShardReader(manifest.folder, info)
            except DamagedSample as error:
                trouble.append(f"{info.samples} pairs are left out: {error}")
            else:
                numbers = range(first, first + info.samples)
                found += [((n + 0.5) / count, split, n, shard.key(n - first)) for n in numbers]
                shard.close()
            first += info.samples
    places = {key: (split, number) for _, split, number, key in sorted(found)}
    if len(places) < len(found):
        raise UserError(
            f"{manifest.folder} holds {len(found) - len(places)} pairs under a key that another has; make them again."
        )
    return places, trouble


def _pair(key: str, sample: dict[str, Any]) -> Pair:
    """ValueError, KeyError or TypeError where the sample is no pair."""
    audio, meta = sample["audio"], sample["meta"]
    rate, frame_rate = int(meta["sample_rate"]), float(meta["frame_rate"])
    if rate <= 0 or not 0 < frame_rate < math.inf:
        raise ValueError(f"its rates are {rate} and {frame_rate} Hz")
    if audio.dtype != np.int16 or audio.ndim != 1 or not len(audio):
        raise ValueError(f"its audio is {audio.dtype}{list(audio.shape)}, not int16 [n]")
    seconds = len(audio) / rate
    for side in ("a", "b"):
        lit = sample[side].shape[-1] / frame_rate
        if abs(lit - seconds) > TOLERANCE:
            raise ValueError(f"its lights {side} last {lit:.2f} s, its music {seconds:.2f} s")
    order = {"a": "ab", "b": "ba"}[meta.get("left", "a")]
    left, right = (Show(side, pack(sample[side])) for side in order)
    return Pair(key, str(meta["input"]), seconds, frame_rate, left, right, wav_bytes(audio, rate))


def wav_bytes(audio: np.ndarray, rate: int) -> bytes:
    """Mono int16 (n) as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, len(audio), "NONE", ""))
        file.writeframes(audio.astype("<i2").tobytes())
    return buffer.getvalue()
