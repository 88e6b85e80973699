"""General MIDI instruments with real samples: notes in, a waveform out, without root and thousands of times real time.

The soundfont is TimGM6mb.sf2, which pretty_midi carries: (c) 2004 Tim Brechbill, 2010 David Bolton, GNU General Public
License version 2 (so says Debian's timgm6mb-soundfont). It is read where it lies and not copied. The synthesiser is
tinysoundfont (MIT), installed with ``pip install --no-deps``: it declares PyAudio, which only playback needs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.chorales import Note
from pipeline.errors import UserError

SOUNDFONT = "TimGM6mb.sf2"
SOUNDFONT_CREDIT = "TimGM6mb.sf2 (c) 2004 Tim Brechbill, 2010 David Bolton, GNU GPL version 2"


def soundfont() -> Path:
    """The soundfont inside pretty_midi's folder, found without importing it; UserError where it is missing."""
    found = importlib.util.find_spec("pretty_midi")
    path = Path(found.origin).parent / SOUNDFONT if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError(f"{SOUNDFONT} was not found; it comes with pretty_midi: pip install pretty_midi.")
    return path


class Player:
    """One synthesiser. What was played before leaves no trace in what is played next."""

    def __init__(self, sample_rate: int) -> None:
        try:
            import tinysoundfont
        except ImportError:
            message = "tinysoundfont is not installed; type: pip install --no-deps tinysoundfont==0.3.7"
            raise UserError(message) from None
        self.sample_rate = sample_rate
        self._synth = tinysoundfont.Synth(samplerate=sample_rate)
        self._font = self._synth.sfload(str(soundfont()))

    def play(
        self, notes: Sequence[Note], program: int, seconds: float, cents: float = 0.0, drums: bool = False
    ) -> np.ndarray:
        """One instrument's part: (round(seconds * sample_rate),) float32, mono.

        Notes of one pitch may not overlap; ``program`` is 0 to 127 as in General MIDI, with ``drums`` a kit's; ``cents`` is the
        deviation from A = 440 Hz. Events fall on exact samples: the synthesiser is run from event to event.
        """
        self._silence()
        self._synth.program_select(0, self._font, 0, program, drums)
        self._synth.set_tuning(0, cents / 100)
        events = []
        for note in notes:
            events.append((round(note.start * self.sample_rate), 1, note))
            events.append((round(note.end * self.sample_rate), 0, note))
        events.sort(key=lambda event: event[:2])  # a release before an attack on the same sample
        chunks, now = [], 0
        for at, attack, note in events:
            chunks.append(self._run(at - now))
            now = at
            if attack:
                self._synth.noteon(0, note.pitch, note.velocity)
            else:
                self._synth.noteoff(0, note.pitch)
        chunks.append(self._run(round(seconds * self.sample_rate) - now))
        stereo = np.concatenate(chunks).reshape(-1, 2)
        return (stereo[:, 0] + stereo[:, 1]) / 2

    def _run(self, samples: int) -> np.ndarray:
        """(2 * samples,) float32, left and right in turn."""
        return np.frombuffer(self._synth.generate(samples), np.float32) if samples > 0 else np.zeros(0, np.float32)

    def _silence(self) -> None:
        self._synth.sounds_off(0)
        self._synth.generate(self.sample_rate // 4)  # the quick fade that "all sounds off" leaves
