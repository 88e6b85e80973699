"""A tiny dataset of Jingle_D's latents, for tests of what reads them: clicks at a pace of their own, and a chord."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.codecs.mdct import Mdct
from models.jingle_d.generate import add_arguments
from tests.models.helpers import info
from tests.pipeline.shard_factory import write_prepared

RATE, HOP, FRAMES = 24000, 320, 64
SEGMENT = FRAMES * HOP  # samples, 0.85 s
TINY = (
    "data.batch_size=4",
    "model.frames=32",
    "model.cascade.feed_forward=[64, 64]",
    "model.cascade.heads=2",
    "model.masks.hidden=16",
    "model.masks.head=8",
    "model.masks.heads=2",
    "model.audio_discriminator.windows=[256]",
    "model.audio_discriminator.excerpt=2048",
)


def recordings(number: int) -> tuple[np.ndarray, np.ndarray]:
    """int16 (SEGMENT,) each: noise that is struck at a pace, and three sines."""
    random = np.random.default_rng(number)
    time = np.arange(SEGMENT) / RATE
    since = time % random.uniform(0.1, 0.25)
    struck = 0.3 * random.normal(size=SEGMENT) * np.exp(-since / 0.02)
    chord = sum(0.1 * np.sin(2 * np.pi * 220 * 2 ** (step / 12) * time) for step in random.choice(12, 3, replace=False))
    return tuple(np.round(32768 * np.clip(wave, -0.99, 0.99)).astype(np.int16) for wave in (struck, chord))


def sample(number: int) -> dict[str, Any]:
    """Two samples are of one pair."""
    first, second = (torch.from_numpy(wave).float() / 32768 for wave in recordings(number))
    codec = Mdct(RATE)
    meta = {side: {"file": f"pair_{number // 2}_{side}.wav"} for side in ("input", "target")}
    return {
        "input_latent": codec.encode(first).half().numpy(),
        "target_latent": codec.encode(second).half().numpy(),
        "meta": meta,
    }


def write_latents(folder: Path, shards: dict[str, list[int]]) -> Path:
    return write_prepared(folder, shards, sample, tiny_info())


def tiny_info() -> dict[str, Any]:
    facts = info("jingle_d_demo")
    for field in facts["latent"]["fields"].values():
        field["shape"] = [128, FRAMES]
        field["std"] = [0.1] * 128
    return facts | {"segment": SEGMENT, "seconds": SEGMENT / RATE}


def arguments(*words: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])
