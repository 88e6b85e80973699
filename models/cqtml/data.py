"""What CQTML is trained on, where no data is prepared: the manifest's facts as the recipes give them, and batches of their shapes.

Shapes: B samples, T frames, n audio samples.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from models.cqtml.config import BINS, LIGHTS
from models.features import CQT
from pipeline.config import RunConfig
from pipeline.train_module import Batch

MEAN, STD = -2.6, 1.6  # of log-magnitudes, over all bins


def typical_data(config: RunConfig) -> dict[str, Any]:
    """Of segments of music (2.5 s in a recipe for demos, else 5 s), or of comparisons made of them."""
    segment = 55125 if config.data.recipe.endswith("_demo") else 110250
    info = {
        "sample_rate": CQT.sample_rate,
        "segment": segment,
        "cqt": dataclasses.asdict(CQT),
        "frames": 1 + segment // CQT.hop,
        "mean": [MEAN] * BINS,
        "std": [STD] * BINS,
        "samples": {"train": 1000, "valid": 100, "test": 100},
    }
    return info | ({"pairs": info["samples"], "of": "a generator"} if config.data.of else {})


def music(info: dict[str, Any], batch_size: int, seed: int) -> Batch:
    """CQTs (B, 2, 84, T) in which a band swells up now and then, and waveforms (B, n) int16 to go with them."""
    generator = torch.Generator().manual_seed(seed)
    frames = int(info["frames"])
    time = torch.arange(frames)
    magnitude = MEAN + 0.1 * torch.randn(batch_size, BINS, frames, generator=generator)
    for i in range(batch_size):
        for low in range(0, BINS, BINS // 3):
            begins = torch.randint(0, frames, (max(2, frames // 150),), generator=generator)
            since = (time - begins[:, None]).clamp_min(0)
            swell = (torch.exp(-since / 40) * (time >= begins[:, None])).amax(0)
            magnitude[i, low : low + BINS // 3] += 3 * swell
    phase = (2 * torch.rand(batch_size, BINS, frames, generator=generator) - 1) * math.pi
    audio = torch.randint(-3000, 3000, (batch_size, int(info["segment"])), generator=generator, dtype=torch.int16)
    position = torch.arange(batch_size)
    return {"cqt": torch.stack([magnitude, phase], 1), "audio": audio, "position": position}


def comparisons(info: dict[str, Any], batch_size: int, seed: int) -> Batch:
    """Pairs (B, 4, T) for such music, of which the one that is brighter is preferred."""
    batch = music(info, batch_size, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    lights = torch.rand(2, batch_size, LIGHTS, 1, generator=generator).expand(-1, -1, -1, int(info["frames"]))
    choice = (lights[0].mean((1, 2)) > lights[1].mean((1, 2))).float()
    kept = {"cqt": batch["cqt"].half(), "position": batch["position"]}
    return kept | {
        "a": lights[0].half(),
        "b": lights[1].half(),
        "choice": choice,
        "votes": torch.ones(batch_size).long(),
    }
