"""Notes to a MIDI file, for the demo corpora."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.chorales import Note


def write_midi(path: Path, tempo: float, lines: Iterable[tuple[str, int, bool, Sequence[Note]]]) -> None:
    """``tempo`` in quarter notes a minute; ``lines``: name, General MIDI program from 0, whether it is a drum kit, notes in seconds."""
    import pretty_midi

    midi = pretty_midi.PrettyMIDI(initial_tempo=tempo, resolution=960)
    for name, program, drums, notes in lines:
        line = pretty_midi.Instrument(program, is_drum=drums, name=name)
        line.notes = [
            pretty_midi.Note(velocity=note.velocity, pitch=note.pitch, start=note.start, end=note.end) for note in notes
        ]
        midi.instruments.append(line)
    midi.write(str(path))
