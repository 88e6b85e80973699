"""Reading Slakh2100's track folders: which files are which stem, which tracks share their MIDI, and what is not what it says.

metadata.yaml names per stem its General MIDI program and whether it was rendered. The files decide: a copy of the dataset (BabySlakh) calls
every stem unrendered and has them all. Source: Manilow, Wichern, Seetharaman, Le Roux, "Cutting music source separation some Slakh" (2019).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep.audio import FULL_SCALE, as_float, decode_mono_at, fitting_gain, peak
from data_prep.stage import BadInput, Input

STEMS = ("bass", "drums", "guitar", "piano")
PROGRAMS = {"piano": range(0, 8), "guitar": range(24, 32), "bass": range(32, 40), "drums": range(128, 129)}
METADATA, MIDI = "metadata.yaml", "all_src.mid"
AUDIO = (".flac", ".wav")
SHORT_BY = 1.0  # seconds that a stem may end before the longest of its track
LOW, HIGH = (8000.0, 10500.0), (13500.0, 16500.0)  # Hz, below and above what a file of 22,050 Hz can hold
CLIFF = 3e-4  # of the density below: 35 dB less within an octave is a resampler's edge, not music
TILE = 1 << 15  # samples of each stem that are added up at a time: what fits into a core's cache
WINDOW, FEW, CLEARLY = (
    4096,
    16,
    10.0,
)  # samples, how many windows are looked at first, and how far above the bar they must be
ROUNDING = 2.0**-30 / 12 / 22050  # density of the noise of rounding to 16 bits, per Hz, full scale 1


def track_files(folder: Path) -> list[Path]:
    """What is read of a track: of a published one metadata, MIDI and the four classes' stems, else the four WAVs."""
    heads = [folder / name for name in (METADATA, MIDI) if (folder / name).is_file()]
    if not (folder / "stems").is_dir():
        return heads + [folder / f"{stem}.wav" for stem in STEMS if (folder / f"{stem}.wav").is_file()]
    stems = sorted(path for path in (folder / "stems").iterdir() if path.suffix in AUDIO and path.name[0] != ".")
    try:
        wanted = set(_classes(_stems_of(_parsed((folder / METADATA).read_bytes()))))
    except (OSError, BadInput):
        return heads + stems  # ``load`` says what is wrong
    return heads + [path for path in stems if path.stem in wanted]


def midi_identity(folder: Path) -> tuple[str, ...]:
    """What tracks of the same MIDI have in common: the UUID of metadata.yaml, the MD5 of all_src.mid; empty where neither is there."""
    marks = []
    if (folder / METADATA).is_file():
        try:
            uuid = _parsed((folder / METADATA).read_bytes()).get("UUID")
        except (OSError, BadInput):
            uuid = None  # quarantined when it is loaded
        marks += [f"uuid {uuid}"] if uuid else []
    if (folder / MIDI).is_file():
        digest = hashlib.md5((folder / MIDI).read_bytes(), usedforsecurity=False).hexdigest()
        marks += [
            f"midi {digest}",
            f"uuid {digest}",
        ]  # Lakh names its files by their MD5, and Slakh its UUIDs after them
    return tuple(marks)


@dataclass(frozen=True)
class Stems:
    """``waves`` int16 (S, n) in the order of STEMS, full scale 32768, with ``gain`` applied; ``there`` names the stems that the track
    has, ``unrendered`` the sources that exist as MIDI only."""

    waves: np.ndarray
    gain: float
    there: tuple[str, ...]
    unrendered: tuple[str, ...]


def read_stems(item: Input, read: Callable[[str], bytes], rate: int) -> Stems:
    """The four stems of a track at ``rate``. Stems may differ in length by SHORT_BY; they end in zeros then.

    Raises BadInput for whatever makes the track unusable.
    """
    paths = {PurePosixPath(file.path).name: file.path for file in item.files}
    if any("stems" in PurePosixPath(file.path).parts[-2:-1] for file in item.files) or METADATA in paths:
        if METADATA not in paths:
            raise BadInput(f"{METADATA} is missing: nothing says which stem is which instrument")
        by_stem, unrendered = _stem_files(_stems_of(_parsed(read(paths[METADATA]))), paths)
    else:
        by_stem, unrendered = {stem: [f"{stem}.wav"] for stem in STEMS if f"{stem}.wav" in paths}, ()
    audio = {
        name: decode_mono_at(read(paths[name]), name, rate) for names in by_stem.values() for name in sorted(names)
    }
    if not audio:
        raise BadInput("it has none of bass, drums, guitar and piano")
    length, shortest = max(map(len, audio.values())), min(audio, key=lambda name: len(audio[name]))
    behind = (length - len(audio[shortest])) / rate
    if behind > SHORT_BY:
        raise BadInput(f"{shortest} ends {behind:.2f} s before the longest stem")
    waves, gain = _added_up([[audio[name] for name in by_stem.get(stem, ())] for stem in STEMS], length)
    if not waves.any():
        raise BadInput("its stems are silent throughout")
    if is_upsampled(waves, rate, len(audio)):
        raise BadInput(f"no energy above 11 kHz: it was made at 22050 Hz and upsampled to {rate} Hz")
    return Stems(waves, gain, tuple(by_stem), unrendered)


def _added_up(sources: Sequence[Sequence[np.ndarray]], length: int) -> tuple[np.ndarray, float]:
    """int16 (S, length), each stem the sum of its sources (int16, or float32 of full scale 1), and the one gain applied to all: 1 unless
    a stem or their sum would clip."""
    stems, top = np.empty((len(sources), length), np.int16), 0.0
    for place, tile in _tiles(sources, length):
        top = max(top, peak(tile), peak(tile.sum(axis=0, dtype=tile.dtype)))
        stems[:, place] = tile if tile.dtype == np.int32 else np.rint(tile)
    gain = fitting_gain(top / FULL_SCALE)
    if gain < 1:
        for place, tile in _tiles(sources, length):
            stems[:, place] = np.rint(tile.astype(np.float32) * np.float32(gain))
    return stems, gain


def _tiles(sources: Sequence[Sequence[np.ndarray]], length: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The stems piece by piece, (S, TILE) at full scale 32768: int32, and so exact, where all sources are int16, else float32."""
    whole = all(wave.dtype == np.int16 for waves in sources for wave in waves)
    for start in range(0, length, TILE):
        place = slice(start, min(start + TILE, length))
        tile = np.zeros((len(sources), place.stop - start), np.int32 if whole else np.float32)
        for row, waves in zip(tile, sources, strict=True):
            for number, wave in enumerate(waves):
                piece = wave[place] if whole else as_float(wave[place]) * np.float32(FULL_SCALE)
                if number == 0:
                    row[: len(piece)] = piece  # a copy that converts is faster than a sum that does
                else:
                    np.add(row[: len(piece)], piece, out=row[: len(piece)])
        yield place, tile


def is_upsampled(stems: np.ndarray, rate: int, sources: int) -> bool:
    """Whether the mixture of int16 (S, n) at ``rate`` holds nothing that 22,050 Hz could not: above 11 kHz there is no more than the
    rounding of ``sources`` files to 16 bits leaves, or the spectrum falls there as only a resampler's filter does. False for silence.

    A few windows speak for the whole where they clear the bar by far; nothing is refused but on all that there is.
    """
    if rate < 2 * HIGH[1]:
        return False
    count = stems.shape[1] // WINDOW
    if count > FEW:
        at = WINDOW * (count * np.arange(FEW) // FEW)
        low, high = _densities(stems[:, (at[:, None] + np.arange(WINDOW)).reshape(-1)], rate)
        if high > CLEARLY * _bar(low, sources):
            return False
    low, high = _densities(stems, rate)
    return high < _bar(low, sources) and bool(stems.any())


def _bar(low: float, sources: int) -> float:
    return max(4 * sources * ROUNDING, CLIFF * low)


def _densities(stems: np.ndarray, rate: int) -> tuple[float, float]:
    """Mean spectral density of the mixture of int16 (S, n) in the bands LOW and HIGH, full scale 1."""
    mixture = as_float(stems.sum(axis=0, dtype=np.int32))
    size = min(WINDOW, len(mixture))
    pieces = mixture[: len(mixture) // size * size].reshape(-1, size)
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    # Welch's method without overlap; SciPy's would cost a worker half a second, to import it
    power = np.square(np.abs(np.fft.rfft((pieces - pieces.mean(axis=1, keepdims=True)) * window))).mean(axis=0)
    hertz, density = np.fft.rfftfreq(size, 1 / rate), 2 * power / (rate * np.square(window).sum())
    low, high = (float(density[(hertz >= a) & (hertz < b)].mean()) for a, b in (LOW, HIGH))
    return low, high


def _parsed(raw: bytes) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.load(raw, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise BadInput(f"{METADATA} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{METADATA} holds no table")
    return tree


def _stems_of(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    stems = tree.get("stems")
    if not isinstance(stems, dict) or not all(isinstance(stem, dict) for stem in stems.values()):
        raise BadInput(f"{METADATA} has no table of stems")
    return {str(name): stem for name, stem in stems.items()}


def _classes(stems: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Source (S00, S01, ...) -> its stem, for those that belong to one of the four."""
    found = {}
    for name, facts in stems.items():
        program = 128 if facts.get("is_drum") is True else facts.get("program_num")
        for stem, programs in PROGRAMS.items():
            if program in programs:
                found[name] = stem
    return found


def _stem_files(
    stems: Mapping[str, Mapping[str, Any]], paths: Mapping[str, str]
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Stem -> file names, and the sources without a file that were never rendered. Raises BadInput for one that is lost."""
    by_stem: dict[str, list[str]] = {}
    unrendered = []
    for source, stem in sorted(_classes(stems).items()):
        name = next((f"{source}{suffix}" for suffix in AUDIO if f"{source}{suffix}" in paths), None)
        if name is not None:
            by_stem.setdefault(stem, []).append(name)
        elif stems[source].get("audio_rendered") is False:
            unrendered.append(source)
        else:
            raise BadInput(f"stems/{source}.flac ({stem}) is missing, {METADATA} says that it was rendered")
    return by_stem, tuple(unrendered)


def torn_groups(groups: Sequence[tuple[str, str]]) -> set[str]:
    """The groups of (group, split) pairs that lie in more than one split."""
    splits: dict[str, set[str]] = {}
    for group, split in groups:
        splits.setdefault(group, set()).add(split)
    return {group for group, found in splits.items() if len(found) > 1}
