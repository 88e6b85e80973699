"""A tiny dataset of CD4MT's latents, and the real shards they are of, for tests of what reads them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.cd4mt.generate import add_arguments
from models.codecs.mdct import Mdct
from pipeline.manifest import read_manifest
from tests.models.helpers import info
from tests.pipeline.shard_factory import write_dataset, write_prepared

FRAMES = 16
SEGMENT = FRAMES * 512
ON_MDCT = ("data.recipe=slakh_stems_demo", "data.codec=mdct")
TINY = (
    *ON_MDCT,
    "data.batch_size=4",
    "model.frames=8",
    "model.unet.channels=16",
    "model.unet.multipliers=[1, 2]",
    "model.unet.attention=[2]",
    "model.unet.head_channels=8",
)


def stems(number: int) -> np.ndarray:
    """int16 (4, SEGMENT): a tone in each stem, none like another sample's; the last one is silent now and then."""
    random = np.random.default_rng(number)
    time = np.arange(SEGMENT) / 44100
    tones = [
        0.2 * np.sin(2 * np.pi * random.uniform(80, 1500) * time) * (time > random.uniform(0, 0.1)) for _ in range(4)
    ]
    tones[3] *= number % 3 > 0
    return np.round(32768 * np.stack(tones)).astype(np.int16)


def write_latents(root: Path, shards: dict[str, list[int]]) -> Path:
    """``root``/slakh_stems_demo and its latents beside it; the folder of the latents."""
    audio, folder = root / "slakh_stems_demo", root / "slakh_stems_demo-mdct"

    def latent(number: int) -> dict[str, Any]:
        wave = torch.from_numpy(stems(number)).float() / 32768
        return {"stems_latent": Mdct(44100).encode(wave).half().numpy(), "present": np.ones(4, bool)}

    for split, counts in shards.items():
        write_dataset(audio, counts, split, lambda number: {"stems": stems(number), "present": np.ones(4, bool)})
    info = tiny_info()
    info["latent"]["source"] = read_manifest(audio).identity
    return write_prepared(folder, shards, latent, info)


def tiny_info() -> dict[str, Any]:
    facts = info("cd4mt_demo", *ON_MDCT)
    field = facts["latent"]["fields"]["stems_latent"]
    field["shape"][-1] = FRAMES
    field["std"] = (0.1 * np.ones((4, 64))).tolist()
    return facts | {"segment": SEGMENT, "seconds": SEGMENT / 44100}


def arguments(*words: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])
