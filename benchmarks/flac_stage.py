"""A recipe that does nothing but decode four FLAC stems, resample them and keep them as PCM16: what preparing stems costs at least.

A part of ``benchmarks/prepare.py``, no benchmark of its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import soxr

from data_prep.stage import BadInput, Input, InputFile, Samples, Stage

SOURCE_RATE = 48_000
RATE = 44_100


@dataclass(frozen=True)
class FlacStage(Stage):
    """A sample is one segment: ``stems.npy``, int16 (stems, segment)."""

    segment: int = 6 * RATE
    sample_rate: ClassVar[int] = RATE
    dataset: ClassVar[str] = "flac"
    code: ClassVar[tuple[str, ...]] = ("benchmarks.flac_stage",)

    def scan(self, source: Path) -> list[Input]:
        return [
            Input(
                track.name,
                "train",
                track.name,
                tuple(InputFile(f"{track.name}/{p.name}") for p in sorted(track.glob("*"))),
            )
            for track in sorted(source.iterdir())
        ]

    def licence(self, source: Path) -> str:
        return "None: noise."

    def load(self, item: Input, read: Callable[[str], bytes]) -> tuple[str, np.ndarray]:
        """Name and float32 (stems, samples) at ``RATE``: decoding and resampling, and nothing else."""
        stems = []
        for file in item.files:
            audio, rate = soundfile.read(io.BytesIO(read(file.path)), dtype="float32")
            if rate != SOURCE_RATE:
                raise BadInput(f"{file.path} has {rate} Hz")
            stems.append(soxr.resample(audio, rate, RATE, quality="VHQ"))
        return item.name, np.stack(stems)

    def assemble(self, loaded: Sequence[tuple[str, np.ndarray]]) -> tuple[Samples, dict[str, Any]]:
        samples: Samples = []
        for name, stems in loaded:
            for number in range(stems.shape[1] // self.segment):
                cut = stems[:, number * self.segment : (number + 1) * self.segment] * np.float32(32768)
                np.clip(np.rint(cut, out=cut), -32768, 32767, out=cut)
                samples.append((f"{name}-{number:03d}", {"stems": cut.astype(np.int16), "meta": {"track": name}}))
        return samples, {}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        return {}

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        return "Noise."


def write_source(folder: Path, tracks: int, seconds: float, stems: int = 4) -> None:
    """Tracks of band-limited noise that swells and fades: FLAC packs it to about half, as it does music."""
    draw = np.random.default_rng(0)
    times = np.arange(int(seconds * SOURCE_RATE)) / SOURCE_RATE
    for track in range(tracks):
        (folder / f"track{track:03d}").mkdir(parents=True)
        for stem in range(stems):
            noise = np.convolve(draw.standard_normal(len(times)), np.hanning(24) / 12, "same")
            audio = 0.1 * noise * (0.6 + 0.4 * np.sin(2 * np.pi * times / (3 + stem)))
            soundfile.write(folder / f"track{track:03d}" / f"stem{stem}.flac", audio, SOURCE_RATE, subtype="PCM_16")
