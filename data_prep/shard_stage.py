"""The base of what is made of shards that are there already, one shard of the source at a time: latents, and what a run draws of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from data_prep.stage import BadInput, Fields, Input, InputFile, Stage
from pipeline.manifest import read_manifest
from pipeline.shards import INDEX_DTYPE, decode, members


@dataclass(frozen=True)
class ShardStage(Stage):
    """One input is one shard of the source, and one shard comes of it, of the same name."""

    def shard_number(self, item: Input, shards: int) -> int:
        return int(item.name.rpartition("-")[2])

    def scan(self, source: Path) -> list[Input]:
        return [
            Input(s.name, s.split, s.name, (InputFile(f"{s.name}.index.npy"), InputFile(f"{s.name}.tar")))
            for s in read_manifest(source).shards
        ]

    def samples_of(self, item: Input, read: Callable[[str], bytes]) -> Iterator[tuple[str, Fields]]:
        """Key and fields of every sample of a shard, checked. Raises BadInput."""
        index = np.load(io.BytesIO(read(f"{item.name}.index.npy")), allow_pickle=False)
        if index.dtype != INDEX_DTYPE:
            raise BadInput(f"{item.name}.index.npy is no index of a shard")
        tar = memoryview(read(f"{item.name}.tar"))
        for row, (offset, size, checksum) in enumerate(index.tolist()):
            raw = tar[offset : offset + size]
            if xxhash.xxh3_64_intdigest(raw) != checksum:
                raise BadInput(f"its sample {row} is not what was written; verify the source with prepare.py --verify")
            fields = decode(members(raw.tobytes()))
            yield fields.pop("__key__"), fields
