"""CocoChorales for DisMix's LDM case: four seconds of a four-part chorale, its sources, their pitch frame by frame, and queries.

A sample is a window of 4 s at 16 kHz, F = 400 frames of 64 mel bands (``features.AUDIOLDM2``), N voices of different instruments, all of
a track's or some:

    mixture.npy      float32 (64, F)         log-mel of the sum of these voices
    sources.npy      float32 (N, 64, F)      log-mel of each stem, with the mixture's gain
    queries.npy      float32 (N, Q, 64, F)   Q windows of the same instrument out of other tracks of the same shard
    pitch.npy        int64 (N, F)            MIDI number at the middle of each frame, REST where the voice rests
    instrument.npy   int64 (N,)              index into info["instruments"]
    wave.npy         int16 (N, 64000)        each source with the mixture's gain, full scale 32768; in valid and test only
    meta.json        track, start (seconds), gain, queries [N][Q] of [track, voice, start]

One gain brings the mixture to LEVEL (less where a wave would clip); a query is brought to LEVEL / sqrt(N). No padding: the windows at both
ends of the first and last frame reach into the recording itself. A voice that is silent throughout a window is in none of its samples.

The manifest's ``info``: instruments (names), sources (N), queries (Q), frames, seconds, sample_rate, rest and pitch_classes (the
labels of ``pitch``), mel {bands, window, hop, f_min, f_max, floor, compression}, mean and std (of log-mel over the training split's
mixtures and sources), samples {train, valid, test}. Source: DisMix, arXiv 2408.10807, Section 5.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from data_prep.cocochorales_clips import (
    LEVEL,
    SHARED_CODE,
    SILENT,
    ChoraleStage,
    Clip,
    Mixture,
    TrackMixtures,
    balance_rows,
    log_mels,
    query_gain,
    rms,
)
from data_prep.cocochorales_reader import SAMPLE_RATE, Note, Voice, read_track
from data_prep.segments import segment_starts
from data_prep.stage import BadInput, Fields, Input, Samples
from pipeline.errors import UserError
from pipeline.manifest import SPLITS

if TYPE_CHECKING:
    from models.features import MelSpec

FRAMES = 400
PITCHES = 128  # MIDI numbers
REST = PITCHES  # the label after them
HEADROOM = 0.999  # of full scale
HEARD_SPLITS = ("valid", "test")  # evaluation compares waveforms there


@dataclass(frozen=True)
class Window(Mixture):
    """``pitch`` int64 (N, F); ``wave`` int16 (N, n)."""

    pitch: np.ndarray
    wave: np.ndarray | None


@dataclass(frozen=True)
class LdmCase(ChoraleStage):
    """``ensembles`` names the tracks that are used (string, brass, woodwind, random), by the first word of their folder.

    Of the choices of ``sources`` voices with different instruments, ``choices_per_window`` are drawn; None takes every one.
    """

    ensembles: tuple[str, ...]
    windows_per_track: int
    choices_per_window: int | None = None
    frames: ClassVar[int] = FRAMES
    code: ClassVar[tuple[str, ...]] = (
        *SHARED_CODE,
        "data_prep.cocochorales_ldm:LdmCase",
        "data_prep.segments:segment_starts",
        "models.features:AUDIOLDM2",
    )

    @property
    def mel(self) -> MelSpec:
        from models.features import AUDIOLDM2

        return AUDIOLDM2

    def scan(self, source: Path) -> list[Input]:
        tracks = super().scan(source)
        chosen = [item for item in tracks if item.name.split("_")[0] in self.ensembles]
        if not chosen:
            raise UserError(
                f"{source} has no track of the ensembles {', '.join(self.ensembles)}, which {self.recipe} is cut from; "
                f"it has {', '.join(sorted({item.name.split('_')[0] for item in tracks}))}."
            )
        return chosen

    def load(self, item: Input, read: Callable[[str], bytes]) -> TrackMixtures:
        voices = read_track(item, read)
        choices = self._choices(voices)
        if not choices:
            return TrackMixtures(item.name, (), (), 0)
        stems = _common(voices)
        windows: list[Window] = []
        bank: list[tuple[Clip, np.ndarray]] = []
        silent = 0
        for start in _starts(stems, self.windows_per_track):
            cut = stems[:, start : start + _reach()]
            sounding = {i for i, stem in enumerate(cut) if rms(stem) >= SILENT}
            drawn = self._drawn(f"{item.name}/{start}", choices)
            heard = [members for members in drawn if sounding.issuperset(members)]
            silent += len(drawn) - len(heard)
            new = [self._window(item, voices, cut, start, members) for members in heard]
            windows += new
            bank += self._bank(cut, new)
        return TrackMixtures(item.name, tuple(windows), tuple(bank), silent)

    def _choices(self, voices: Sequence[Voice]) -> list[tuple[int, ...]]:
        """The voices that may be heard together: a query must identify one source, so no instrument may play twice."""
        known = [i for i, voice in enumerate(voices) if voice.instrument in self.instruments]
        together = itertools.combinations(known, self.sources)
        return [members for members in together if len({voices[i].instrument for i in members}) == self.sources]

    def _drawn(self, window: str, choices: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        if self.choices_per_window is None or len(choices) <= self.choices_per_window:
            return choices
        rng = random.Random(f"{self.recipe}/{window}/choices")
        return sorted(rng.sample(choices, self.choices_per_window))

    def _window(
        self, item: Input, voices: Sequence[Voice], stems: np.ndarray, start: int, members: tuple[int, ...]
    ) -> Window:
        """The voices ``members`` of stems (voices, n), which begin ``start`` samples into the recording."""
        from models.features import AUDIOLDM2

        cut = stems[list(members)]
        mix = cut.sum(axis=0)
        gain = min(LEVEL / max(rms(mix), SILENT), HEADROOM / max(float(np.abs(cut).max()), float(np.abs(mix).max())))
        mels = log_mels([gain * mix, *(gain * cut)], AUDIOLDM2)
        first = start + AUDIOLDM2.margin
        times = (first + (np.arange(FRAMES) + 0.5) * AUDIOLDM2.hop) / SAMPLE_RATE
        clips = tuple(
            Clip(item.name, i, first / SAMPLE_RATE, self.instruments.index(voices[i].instrument)) for i in members
        )
        inner = gain * cut[:, AUDIOLDM2.margin : -AUDIOLDM2.margin]
        part = "" if len(members) == len(voices) else "-" + "".join(map(str, members))
        return Window(
            f"{item.name}-{round(1000 * first / SAMPLE_RATE):06d}{part}",
            clips,
            gain,
            mels[0],
            mels[1:],
            np.stack([frame_pitches(voices[i].notes, times) for i in members]),
            np.round(inner * 32768).astype(np.int16) if item.split in HEARD_SPLITS else None,
        )

    def _bank(self, stems: np.ndarray, windows: Sequence[Window]) -> list[tuple[Clip, np.ndarray]]:
        """Each voice that is heard in the windows of one stretch, stems (voices, n), at the level of a query."""
        from models.features import AUDIOLDM2

        clips = {clip.voice: clip for window in windows for clip in window.clips}
        ordered = [clips[voice] for voice in sorted(clips)]
        crops = [query_gain(stems[clip.voice], self.sources) * stems[clip.voice] for clip in ordered]
        return list(zip(ordered, log_mels(crops, AUDIOLDM2), strict=True))

    def assemble(self, loaded: Sequence[TrackMixtures]) -> tuple[Samples, dict[str, Any]]:
        samples, summary = super().assemble(loaded)
        return samples, summary | {"unfit": sum(not track.mixtures and not track.silent for track in loaded)}

    def notes(self, mixtures: Sequence[Mixture]) -> np.ndarray:
        notes = np.zeros((len(self.instruments), PITCHES + 1), np.int64)
        for window in mixtures:
            assert isinstance(window, Window)
            for clip, pitch in zip(window.clips, window.pitch, strict=True):
                notes[clip.instrument] += np.bincount(pitch, minlength=PITCHES + 1)
        return notes

    def own_fields(self, mixture: Mixture) -> Fields:
        assert isinstance(mixture, Window)
        fields: Fields = {"pitch": mixture.pitch}
        return fields if mixture.wave is None else fields | {"wave": mixture.wave}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        return super().info(summaries, samples) | {"rest": REST, "pitch_classes": PITCHES + 1}

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        every = [summary for split in SPLITS for summary in summaries[split]]
        hours = self.hours(summaries)
        no_query, silent, unfit = (sum(s[what] for s in every) for what in ("no_query", "silent", "unfit"))
        return "\n".join(
            [
                f"Each sample is 4 s of {self.sources} different instruments with the pitch of each in every frame, and "
                f"{self.queries} queries a source; fields, shapes and units stand at the head of `data_prep/cocochorales_ldm.py`.",
                "",
                f"{hours:.2f} hours of mixtures. Left out: {no_query} windows with an instrument that no other track of the shard "
                f"plays (no query), {silent} in which a voice is silent throughout, {unfit} tracks with too few of the instruments.",
                "",
                "## Balance",
                "",
                "Frames by split and instrument, and how they spread over the MIDI notes between the lowest and highest of all.",
                "",
                "| split | instrument | frames with a note | least of a note | mean | most | notes that never occur |",
                "|---|---|---|---|---|---|---|",
                *(row for split in SPLITS for row in self._balance(split, summaries)),
            ]
        )

    def _balance(self, split: str, summaries: dict[str, list[dict[str, Any]]]) -> list[str]:
        sounding = [np.array(s["notes"])[:, :REST] for each in SPLITS for s in summaries[each]]
        heard = np.flatnonzero(np.sum(sounding, axis=(0, 1)))
        low, high = (int(heard[0]), int(heard[-1]) + 1) if len(heard) else (0, 1)
        table = np.sum(
            [np.array(s["notes"])[:, low:high] for s in summaries[split]]
            or [np.zeros((len(self.instruments), high - low), np.int64)],
            axis=0,
        )
        return balance_rows(split, self.instruments, table)


def frame_pitches(notes: Sequence[Note], times: np.ndarray) -> np.ndarray:
    """int64, for each of ``times`` (seconds) the MIDI number that sounds, the later note where two overlap, else REST."""
    pitches = np.full(len(times), REST, np.int64)
    for note in notes:  # sorted by start
        pitches[np.searchsorted(times, note.start) : np.searchsorted(times, note.end)] = note.pitch
    return pitches


def _reach() -> int:
    """Samples of a window with the margins that the outermost frames reach into."""
    from models.features import AUDIOLDM2

    return FRAMES * AUDIOLDM2.hop + 2 * AUDIOLDM2.margin


def _common(voices: Sequence[Voice]) -> np.ndarray:
    """(N, n) of the stretch that all stems have. Raises BadInput where it is shorter than a window."""
    length = min(len(voice.audio) for voice in voices)
    if length < _reach():
        raise BadInput(
            f"its stems have {length / SAMPLE_RATE:.2f} s in common, a window needs {_reach() / SAMPLE_RATE:.2f} s"
        )
    return np.stack([voice.audio[:length] for voice in voices])


def _starts(stems: np.ndarray, most: int) -> list[int]:
    return segment_starts(stems.shape[1], _reach(), most)
