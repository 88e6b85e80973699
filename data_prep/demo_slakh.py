"""A small corpus in Slakh2100's real layout, with its traps: our songs for a small band, played by General MIDI instruments.

    <out>/slakh2100/{train,validation,test}/TrackNNNNN/{metadata.yaml, all_src.mid, mix.flac, MIDI/SNN.mid, stems/SNN.flac}

44.1 kHz, 16 bit, mono. Every track has bass, drums, guitar and piano, and a melody that belongs to none of the four stems. The traps,
from TRAPS on the tracks in turn: a track without guitar; a stem that exists as MIDI only; a piano of two sources; stems of unequal
lengths; and a test track whose MIDI is that of a train track, played by other instruments.

The songs have one tempo and few keys, so that a model learns from minutes of music what it would else need hours for: a bar lasts 2 s.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.band import Song, compose
from data_prep.chorales import Note
from data_prep.demo_corpus import Corpus, shares
from data_prep.midi import write_midi
from data_prep.performance import PEAK, PLAYING, PROGRAMS, TAIL, cast, play
from data_prep.synth import Player

DEFAULT_TRACKS = 60
RECIPE = "slakh_stems_16k_demo"  # what is prepared from it next
SAMPLE_RATE = 44100
BARS = 16
TEMPO = 120.0  # beats of a minute
TONICS = (0, 5, 7)  # C, F, G
FOLDERS = {"train": "train", "valid": "validation", "test": "test"}
FIRST_NUMBER = {"train": 1, "valid": 1501, "test": 1876}
SOURCES = ("piano", "guitar", "bass", "drums", "lead")  # S00, S01, ... in this order
CLASSES = {"piano": "Piano", "guitar": "Guitar", "bass": "Bass", "drums": "Drums", "lead": "Pipe"}
DRUMS = 128  # Slakh's program of every kit
TRAPS = ("", "no guitar", "unrendered", "two pianos", "short stem", *[""] * 7)


@dataclass(frozen=True)
class Track:
    split: str
    number: int
    song: Song
    programs: dict[str, int]
    trap: str

    @property
    def name(self) -> str:
        return f"Track{self.number:05d}"


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` tracks into ``out``; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[Track]:
    """The tracks; the last test track is a twin of the first train track."""
    jobs = []
    for split, count in shares(tracks, 0.2, 0.15, least=2):
        for i in range(count):
            rng = random.Random(f"{seed}/{split}/{i}")
            song = compose(rng, BARS, TONICS[i % len(TONICS)], TEMPO)
            jobs.append(Track(split, FIRST_NUMBER[split] + i, song, cast(rng), TRAPS[i % len(TRAPS)]))
    jobs[-1] = replace(jobs[-1], song=jobs[0].song, trap="")
    return jobs


_player: Player | None = None  # one a process: loading the soundfont takes longer than playing a track


def _render_track(root: Path, track: Track) -> None:
    global _player
    _player = _player or Player(SAMPLE_RATE)
    stems: dict[str, np.ndarray] = {}
    for part, notes in _sources(track):
        wave = play(_player, part, track.programs[part], notes, track.song.seconds + TAIL)
        stems[part if part not in stems else f"{part} 2"] = wave
    gain = PEAK / float(np.abs(sum(stems.values())).max())
    _write_track(root / FOLDERS[track.split] / track.name, track, {name: gain * s for name, s in stems.items()}, gain)


def _sources(track: Track) -> list[tuple[str, tuple[Note, ...]]]:
    """What is played, in the order of the stems' numbers. Two pianos share one part: a low hand and a high one."""
    found = []
    for part in SOURCES:
        notes = track.song.parts[part]
        if part == "guitar" and track.trap == "no guitar":
            continue
        if part == "piano" and track.trap == "two pianos":
            found += [(part, notes[::2]), (part, notes[1::2])]
        else:
            found.append((part, notes))
    return found


def _write_track(folder: Path, track: Track, stems: dict[str, np.ndarray], gain: float) -> None:
    import soundfile

    (folder / "stems").mkdir(parents=True)
    (folder / "MIDI").mkdir()
    facts: dict[str, Any] = {}
    mix = np.zeros(len(next(iter(stems.values()))), np.int32)
    midi = []
    for number, ((name, wave), (part, notes)) in enumerate(zip(stems.items(), _sources(track), strict=True)):
        source = f"S{number:02d}"
        rendered = not (track.trap == "unrendered" and part == "guitar")
        facts[source] = _stem_facts(part, track.programs[part], wave, rendered)
        midi.append((part, track.programs[part], notes))
        _write_midi(folder / "MIDI" / f"{source}.mid", track, midi[-1:])
        if rendered:
            samples = np.round(32767 * wave).astype(np.int16)
            mix += samples
            if track.trap == "short stem" and name == "piano":
                samples = samples[: -SAMPLE_RATE // 2]
            soundfile.write(folder / "stems" / f"{source}.flac", samples, SAMPLE_RATE, subtype="PCM_16")
    soundfile.write(folder / "mix.flac", mix.astype(np.int16), SAMPLE_RATE, subtype="PCM_16")
    _write_midi(folder / "all_src.mid", replace(track, trap=""), midi)
    identity = hashlib.md5((folder / "all_src.mid").read_bytes(), usedforsecurity=False).hexdigest()
    (folder / "metadata.yaml").write_text(_metadata(identity, facts, gain))


def _stem_facts(part: str, program: int, wave: np.ndarray, rendered: bool) -> dict[str, Any]:
    """The keys of the real files. The level is RMS in dB and stands in for the real ones' integrated loudness."""
    return {
        "audio_rendered": rendered,
        "inst_class": CLASSES[part],
        "integrated_loudness": float(20 * np.log10(np.sqrt(np.mean(wave**2)))),
        "is_drum": part == "drums",
        "midi_program_name": CLASSES[part],
        "midi_saved": True,
        "plugin_name": "None" if not rendered else "TimGM6mb.sf2",
        "program_num": DRUMS if part == "drums" else program,
    }


def _metadata(identity: str, stems: dict[str, Any], gain: float) -> str:
    import yaml

    tree = {
        "UUID": identity,
        "audio_dir": "stems",
        "lmd_midi_dir": f"demo/{identity}.mid",
        "midi_dir": "MIDI",
        "normalization_factor": -13.0,
        "normalized": True,
        "overall_gain": gain,
        "stems": stems,
        "target_peak": -1.0,
    }
    return yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def _write_midi(path: Path, track: Track, lines: Sequence[tuple[str, int, tuple[Note, ...]]]) -> None:
    """Without the programs that this track happens to be played with in all_src.mid: twins share their bytes there."""
    programs = {part: PROGRAMS[part][0] for part in PROGRAMS}
    write_midi(path, track.song.tempo, [(part, programs[part], part == "drums", notes) for part, _, notes in lines])


CODE = ("data_prep.demo_slakh", *PLAYING, "data_prep.midi")
CORPUS = Corpus("slakh2100", CODE, _render_track, 6, "each of train, valid and test needs two")
