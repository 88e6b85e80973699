"""A recipe of small int16 stems (or their mels) made of numbers in text files: what the latent stage reads, in milliseconds."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data_prep.stage import Samples
from tests.data_prep.light_stage import LightStage

SEGMENT = 4096
FRAMES = 40


@dataclass(frozen=True)
class ToneStage(LightStage):
    """Per input ``rows`` samples: ``stems`` int16 (2, SEGMENT), ``present`` bool (2,), meta. With ``mels`` float32 (2, 64, FRAMES)."""

    sample_rate: int = 44100
    mels: bool = False
    dataset: ClassVar[str] = "tones"

    def assemble(self, loaded: Sequence[tuple[str, int]]) -> tuple[Samples, dict[str, Any]]:
        samples: Samples = []
        for name, number in loaded:
            draw = np.random.default_rng(number)
            for row in range(self.rows):
                pitch = draw.uniform(0.01, 0.1, (2, 1))
                wave = (8000 * np.sin(pitch * np.arange(SEGMENT)) + draw.normal(0, 100, (2, SEGMENT))).astype(np.int16)
                stems = draw.normal(-5, 2, (2, 64, FRAMES)).astype(np.float32) if self.mels else wave
                fields = {"stems": stems, "present": np.array([True, False]), "meta": {"number": number, "row": row}}
                samples.append((f"{name}-{row}", fields))
        return samples, {"total": len(samples)}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        from models.features import AUDIOLDM2

        mel = {"mel": dataclasses.asdict(AUDIOLDM2)} if self.mels else {}
        return {"sample_rate": self.sample_rate, "samples": samples, **mel}


RECIPES = {
    "tones": ToneStage("tones", 3, rows=4),
    "tones_24k": ToneStage("tones_24k", 9, rows=1, sample_rate=24000),
    "tones_mel": ToneStage("tones_mel", 3, rows=2, sample_rate=16000, mels=True),
}
