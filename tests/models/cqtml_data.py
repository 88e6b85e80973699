"""A tiny dataset for CQTML's tests: a third of a second of clicks and hum, with the CQT that the project itself computes."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import numpy as np
from torch import Tensor

from models.cqtml import api
from models.cqtml.data import music, typical_data
from pipeline.manifest import FORMAT, MANIFEST, Manifest, read_manifest, sealed
from tests.models.helpers import load
from tests.pipeline.shard_factory import write_shard

DATA = {"mean": [-2.6] * 84, "std": [1.6] * 84}
SEGMENT = 8128  # 128 frames, 8 columns
COLUMNS = 8
BODY = {"width": 16, "depth": 1, "heads": 2, "columns": COLUMNS}


def heard(batch: int = 2, frames: int = 128, seed: int = 0) -> Tensor:
    """CQTs (B, 2, 84, T) in which bands swell up."""
    return music(typical_data(load("cqtml_demo")) | {"frames": frames, "segment": 64 * (frames - 1)}, batch, seed)[
        "cqt"
    ]


def song(number: int) -> np.ndarray:
    """(n,) float32: clicks at random places over a quiet hum."""
    random = np.random.default_rng(number)
    time = np.arange(SEGMENT) / 22050
    wave = 0.05 * np.sin(2 * np.pi * random.uniform(100, 400) * time)
    for start in random.integers(0, SEGMENT - 800, 2):
        wave[start : start + 800] += 0.5 * np.exp(-np.arange(800) / 150) * random.normal(size=800)
    return wave.clip(-0.99, 0.99).astype(np.float32)


def segment(number: int) -> dict[str, object]:
    wave = song(number)
    audio = (32767 * wave).astype(np.int16)
    return {"cqt": api.listen(wave).numpy(), "audio": audio, "meta": {"track": f"song{number}"}}


def facts() -> dict[str, object]:
    """``info`` of the tiny dataset."""
    return typical_data(load("cqtml_demo")) | {"segment": SEGMENT, "frames": 1 + SEGMENT // 64}


def write_songs(folder: Path, shards: dict[str, list[int]]) -> Manifest:
    """``folder``/fma_cqt_demo with shards of so many segments by split; every segment has a key of its own."""
    data, numbers, lines = folder / "fma_cqt_demo", count(), []
    data.mkdir(parents=True)
    for split, counts in shards.items():
        for shard, size in enumerate(counts):
            songs = [(f"song{number:06d}", segment(number)) for number in islice(numbers, size)]
            lines.append(write_shard(data, f"{split}-{shard:06d}", split, songs))
    info = facts() | {"samples": {split: sum(counts) for split, counts in shards.items()}}
    head = {"format": FORMAT, "dataset": "fma", "recipe": "fma_cqt_demo", "codec": None, "info": info}
    (data / MANIFEST).write_bytes(sealed(head | {"shards": lines}))
    return read_manifest(data)
