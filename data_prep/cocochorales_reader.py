"""Reading CocoChorales' real layout, in all the spellings that occur, and finding its held chords.

    [main_dataset/]{train,valid,test}/<ensemble>_trackNNNNNN/
        metadata.yaml  stems_audio/<i>_<instrument>.wav  stems_MIDI|stems_midi/<i>_<instrument>.mid

The documentation counts the stems from 0, the code that made the dataset from 1; metadata.yaml always from 0. Splits are folders.
Source: github.com/lukewys/chamber-ensemble-generator, data_format.md.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep.audio import decode
from data_prep.stage import BadInput, Input, InputFile
from pipeline.errors import UserError
from pipeline.manifest import SPLITS

SAMPLE_RATE = 16000
INSTRUMENTS = (
    "violin", "viola", "cello", "double bass", "flute", "oboe", "clarinet",
    "saxophone", "bassoon", "trumpet", "horn", "trombone", "tuba",
)  # fmt: skip
LAYOUT = "main_dataset/{train,valid,test}/<ensemble>_trackNNNNNN/{metadata.yaml, stems_audio/, stems_MIDI/}"
TRACK_NAME = re.compile(r"[a-z]+_track\d+")
STEM_NAME = re.compile(r"(\d+)_(.+)")
MIDI_FOLDERS = ("stems_midi", "stems_MIDI")
SHORT_BY = 0.25  # seconds that a stem may end before its last note does


@dataclass(frozen=True)
class Note:
    """Seconds, and a MIDI number."""

    start: float
    end: float
    pitch: int


@dataclass(frozen=True)
class Voice:
    """One stem. ``audio``: (n,) float64 at SAMPLE_RATE, full scale 1; notes sorted by start."""

    instrument: str
    audio: np.ndarray
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Chord:
    """A stretch (seconds) in which no voice changes; ``pitches`` by voice, None where it rests or plays several notes at once."""

    start: float
    end: float
    pitches: tuple[int | None, ...]


def scan_tracks(source: Path) -> list[Input]:
    """Every track folder with the files that are read of it. Raises UserError for a missing or empty folder and another layout."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; --source is where the dataset lies ({LAYOUT}).")
    names = sorted(path.name for path in source.iterdir())
    if not names:
        raise UserError(f"{source} is empty; expected {LAYOUT}.")
    root = source / "main_dataset" if "main_dataset" in names else source
    tracks = [
        _track(folder, split, source)
        for split in SPLITS
        if (root / split).is_dir()
        for folder in sorted((root / split).iterdir())
        if folder.is_dir() and TRACK_NAME.fullmatch(folder.name)
    ]
    if not tracks:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(f"{source} is not CocoChorales: expected {LAYOUT}, found {shown}.")
    return tracks


def _track(folder: Path, split: str, source: Path) -> Input:
    files = [path for path in folder.iterdir() if path.name == "metadata.yaml"]
    for part in folder.iterdir():
        if part.is_dir() and part.name in ("stems_audio", *MIDI_FOLDERS):
            files += [path for path in part.iterdir() if path.suffix in (".wav", ".mid") and path.name[0] != "."]
    listed = tuple(InputFile(path.relative_to(source).as_posix()) for path in sorted(files))
    return Input(folder.name, split, folder.name, listed)


def read_track(item: Input, read: Callable[[str], bytes]) -> tuple[Voice, ...]:
    """The voices of a track, soprano to bass. Raises BadInput for whatever makes it unusable."""
    paths = [PurePosixPath(file.path) for file in item.files]
    metadata = next((path for path in paths if path.name == "metadata.yaml"), None)
    if metadata is None:
        raise BadInput("metadata.yaml is missing")
    instruments = read_instruments(read(str(metadata)))
    audio = _stems(paths, ("stems_audio",), ".wav", instruments)
    midi = _stems(paths, MIDI_FOLDERS, ".mid", instruments)
    voices = []
    for instrument, wav, mid in zip(instruments, audio, midi, strict=True):
        notes, samples = read_notes(read(str(mid)), mid.name), read_audio(read(str(wav)), wav.name)
        seconds = len(samples) / SAMPLE_RATE
        if notes and notes[-1].end > seconds + SHORT_BY:
            raise BadInput(
                f"{wav.name} is shorter than expected: {seconds:.2f} s, its last note ends at {notes[-1].end:.2f} s"
            )
        if notes and not samples.any():
            raise BadInput(f"{wav.name} is silent throughout, {mid.name} has {len(notes)} notes")
        voices.append(Voice(instrument, samples, notes))
    return tuple(voices)


def read_instruments(raw: bytes) -> tuple[str, ...]:
    """Instrument names by voice, from metadata.yaml, whose keys count from 0. Raises BadInput."""
    import yaml

    try:
        tree = yaml.load(raw, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        named = {int(voice): str(name) for voice, name in tree["instrument_name"].items()}
    except yaml.YAMLError as error:
        raise BadInput(f"metadata.yaml is not valid YAML: {' '.join(str(error).split())}") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BadInput("metadata.yaml has no table instrument_name of voices and instruments") from None
    if not named or sorted(named) != list(range(len(named))):
        raise BadInput(f"metadata.yaml numbers its voices {sorted(named)}, expected 0, 1, 2, ...")
    return tuple(_plain(named[voice]) for voice in range(len(named)))


def read_audio(raw: bytes, name: str) -> np.ndarray:
    """(n,) float64 from a mono file of SAMPLE_RATE. Raises BadInput."""
    audio, rate = decode(raw, name)
    if rate != SAMPLE_RATE or len(audio) != 1:
        raise BadInput(f"{name} has {rate} Hz and {len(audio)} channels, expected {SAMPLE_RATE} Hz and 1")
    return audio[0].astype(np.float64)


def read_notes(raw: bytes, name: str) -> tuple[Note, ...]:
    """The notes of a one-voice MIDI file, sorted. Raises BadInput."""
    import pretty_midi

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # pretty_midi warns of tempo changes on other tracks; they are read all the same
            midi = pretty_midi.PrettyMIDI(io.BytesIO(raw))
    except EOFError:
        raise BadInput(f"{name} is not a whole MIDI file: it ends too early") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise BadInput(f"{name} is not a MIDI file: {_first_line(error)}") from None
    found = [Note(float(n.start), float(n.end), int(n.pitch)) for line in midi.instruments for n in line.notes]
    return tuple(sorted(found, key=lambda note: (note.start, note.pitch)))


def held_chords(voices: Sequence[Sequence[Note]], at_least: float) -> list[Chord]:
    """The stretches of ``at_least`` seconds in which no voice attacks or releases, and at least one sounds."""
    edges = sorted({edge for notes in voices for note in notes for edge in (note.start, note.end)})
    chords = []
    cursors = [0] * len(voices)
    for start, end in itertools.pairwise(edges):
        pitches: list[int | None] = []
        for i, notes in enumerate(voices):
            while cursors[i] < len(notes) and notes[cursors[i]].end <= start:
                cursors[i] += 1
            sounding = [n.pitch for n in notes[cursors[i] : cursors[i] + 4] if n.start <= start and n.end >= end]
            pitches.append(sounding[0] if len(sounding) == 1 else None)
        if end - start >= at_least and any(pitch is not None for pitch in pitches):
            chords.append(Chord(start, end, tuple(pitches)))
    return chords


def _stems(
    paths: Sequence[PurePosixPath], folders: Sequence[str], suffix: str, instruments: Sequence[str]
) -> list[PurePosixPath]:
    """The stem of every voice. Numbers run from 0 or from 1, and each name must carry its voice's instrument."""
    complaint = ""
    for folder in folders:
        found: dict[int, tuple[str, PurePosixPath]] = {}
        for path in paths:
            match = STEM_NAME.fullmatch(path.stem)
            if path.parent.name == folder and path.suffix == suffix and match:
                found[int(match[1])] = (_plain(match[2]), path)
        count = len(instruments)
        if sorted(found) not in (list(range(count)), list(range(1, count + 1))):
            numbers = ", ".join(map(str, sorted(found))) or "none"
            if found or not complaint:
                complaint = f"{folder} has {len(found)} of {count} stems (numbers {numbers})"
            continue
        base = min(found)
        stems = [found[base + voice] for voice in range(count)]
        wrong = [path.name for (name, path), want in zip(stems, instruments, strict=True) if name != want]
        if wrong:
            raise BadInput(f"{folder}/{wrong[0]} does not fit metadata.yaml, which says {', '.join(instruments)}")
        return [path for _, path in stems]
    raise BadInput(complaint)


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
