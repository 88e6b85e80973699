"""A small corpus in CocoChorales' real layout: our chorales, played by General MIDI instruments.

    <out>/LICENCE.txt  made.json
    <out>/main_dataset/{train,valid,test}/<ensemble>_trackNNNNNN/
        metadata.yaml  mix.wav  mix.mid
        stems_audio/1_violin.wav ...   stems_midi/1_violin.mid ...     as the code that made CocoChorales writes it
        stems_audio/0_violin.wav ...   stems_MIDI/0_violin.mid ...     as its documentation says; every other track

16 kHz, 16 bit, mono. Track numbers lie where the real ones do: train from 1, valid from 192001, test from 216001.
In `random` ensembles any of DEMO_INSTRUMENTS plays any voice, so that the instrument cannot be guessed from the pitch; within a split
they are cast so that from PITCHES each plays every note about equally often.
Every sixteenth track is another ensemble (string, brass, woodwind, or a random one with a double bass, whose name has a space).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.casting import Casting
from data_prep.chorales import Chorale, compose
from data_prep.demo_corpus import Corpus, shares
from data_prep.midi import write_midi
from data_prep.synth import Player

DEFAULT_TRACKS = 190
RECIPE = "cocochorales_simple_demo"  # what is prepared from it next
SAMPLE_RATE = 16000
CHORDS = 28
PITCHES = (48, 72)  # MIDI notes, both inclusive; those of the recipe cocochorales_simple_demo
TAIL = 0.5  # seconds after the last release
TARGET_PEAK = -1.0  # dB, of the mixture
PROGRAMS = {  # General MIDI programs, counted from 0
    "violin": 40, "viola": 41, "cello": 42, "double bass": 43, "flute": 73, "oboe": 68, "clarinet": 71,
    "saxophone": 65, "bassoon": 70, "trumpet": 56, "horn": 60, "trombone": 57, "tuba": 58,
}  # fmt: skip
DEMO_INSTRUMENTS = ("violin", "flute", "clarinet", "trumpet")
GUESTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("string", ("violin", "violin", "viola", "cello")),
    ("random", ("oboe", "saxophone", "horn", "double bass")),
    ("brass", ("trumpet", "horn", "trombone", "tuba")),
    ("woodwind", ("flute", "oboe", "clarinet", "bassoon")),
)
GUEST_EVERY = 16
CODE = (
    "data_prep.demo_cocochorales",
    "data_prep.chorales",
    "data_prep.casting",
    "data_prep.synth:Player",
    "data_prep.midi",
)
FIRST_NUMBER = {"train": 1, "valid": 192001, "test": 216001}


@dataclass(frozen=True)
class Track:
    split: str
    ensemble: str
    number: int
    instruments: tuple[str, ...]
    chorale: Chorale
    documented: bool  # file names as the documentation has them (stems_MIDI, from 0), else as the code has them
    seed: str

    @property
    def name(self) -> str:
        return f"{self.ensemble}_track{self.number:06d}"


def render(out: Path, tracks: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render ``tracks`` tracks into ``out``; see ``demo_corpus.Corpus.write``."""
    return CORPUS.write(out, plan, tracks, seed, workers)


def plan(tracks: int, seed: int) -> list[Track]:
    """The tracks, about 70 % train, 20 % valid and 10 % test, at least two of each; keys go round within a split."""
    jobs = []
    for split, count in shares(tracks, 0.2, 0.1, least=2):
        casting = Casting(DEMO_INSTRUMENTS, *PITCHES)
        for i in range(count):
            name = f"{seed}/{split}/{i}"
            # 5 is coprime to 12: twelve tracks on end have the twelve keys, far ones next to each other
            chorale = compose(random.Random(f"{name}/chorale"), CHORDS, (5 * i) % 12)
            if i % GUEST_EVERY == GUEST_EVERY - 1:
                ensemble, instruments = GUESTS[i // GUEST_EVERY % len(GUESTS)]
            else:
                ensemble = "random"
                chorale, instruments = casting.cast(random.Random(f"{name}/casting"), chorale)
            number = FIRST_NUMBER[split] + i
            jobs.append(Track(split, ensemble, number, instruments, chorale, i % 2 == 1, f"{name}/performance"))
    return jobs


_player: Player | None = None  # one a process: loading the soundfont takes longer than playing a track


def _render_track(root: Path, track: Track) -> None:
    global _player
    _player = _player or Player(SAMPLE_RATE)
    rng = random.Random(track.seed)
    chorale, stems = track.chorale, []
    for notes, instrument in zip(chorale.voices, track.instruments, strict=True):
        cents = rng.uniform(-8.0, 8.0)  # nobody is in perfect tune
        stems.append(_player.play(notes, PROGRAMS[instrument], chorale.seconds + TAIL, cents).astype(np.float64))
    levels = [float(np.sqrt(np.mean(stem**2))) for stem in stems]
    stems = [0.1 / level * stem for stem, level in zip(stems, levels, strict=True)]
    gain = 10 ** (TARGET_PEAK / 20) / float(np.abs(sum(stems)).max())
    _write_track(root / track.split / track.name, track, chorale, [gain * stem for stem in stems], gain, levels)


def _write_track(
    folder: Path, track: Track, chorale: Chorale, stems: list[np.ndarray], gain: float, levels: list[float]
) -> None:
    import soundfile

    base, midi_folder = (0, "stems_MIDI") if track.documented else (1, "stems_midi")
    (folder / "stems_audio").mkdir(parents=True)
    (folder / midi_folder).mkdir()
    quantised = [np.round(stem * 32767).astype(np.int16) for stem in stems]
    mix = np.sum(quantised, axis=0, dtype=np.int32).astype(np.int16)  # the mix is the sum of its stems, to the bit
    soundfile.write(folder / "mix.wav", mix, SAMPLE_RATE, subtype="PCM_16")
    _write_midi(folder / "mix.mid", chorale, track.instruments, range(len(stems)))
    for i, (instrument, stem) in enumerate(zip(track.instruments, quantised, strict=True)):
        soundfile.write(folder / "stems_audio" / f"{i + base}_{instrument}.wav", stem, SAMPLE_RATE, subtype="PCM_16")
        _write_midi(folder / midi_folder / f"{i + base}_{instrument}.mid", chorale, track.instruments, [i])
    (folder / "metadata.yaml").write_text(_metadata(track, chorale, gain, levels))


def _metadata(track: Track, chorale: Chorale, gain: float, levels: list[float]) -> str:
    """The keys of the real files. The levels are RMS, in dB, and stand in for the real ones' integrated loudness."""
    import yaml

    tree = {
        "midi_file": f"{track.number}.mid",
        "tempo": chorale.tempo,
        "ensemble": track.ensemble,
        "instrument_name": dict(enumerate(track.instruments)),
        "midi_program_number": {i: PROGRAMS[name] for i, name in enumerate(track.instruments)},
        "normalization_factor": -20.0,
        "target_peak": TARGET_PEAK,
        "normalized": True,
        "overall_gain": gain,
        "stem_integrated_loudness": {i: float(20 * np.log10(level)) for i, level in enumerate(levels)},
        "pitch_correction_amount": {i: [0.0] * len(notes) for i, notes in enumerate(chorale.voices)},
    }
    return yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def _write_midi(path: Path, chorale: Chorale, instruments: tuple[str, ...], voices: Iterable[int]) -> None:
    lines = [(instruments[voice], PROGRAMS[instruments[voice]], False, chorale.voices[voice]) for voice in voices]
    write_midi(path, chorale.tempo, lines)


CORPUS = Corpus("main_dataset", CODE, _render_track, 6, "each of train, valid and test needs two")
