"""Writes a small valid dataset for tests of what reads one (the real writer, data_prep/shards.py, has tests of its own)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.manifest import FORMAT, Manifest, read_manifest, sealed, unsealed
from pipeline.shards import INDEX_DTYPE

Sample = dict[str, Any]  # arrays by field; anything else is written as JSON


def numbered(number: int) -> Sample:
    """A tiny sample from which one can read which it is: its number, some floats of it, and JSON of varying length."""
    values = np.random.default_rng(number).normal(size=(3, 5)).astype(np.float32)
    return {"id": np.int64(number), "mel": values, "meta": {"number": number, "text": "x" * (number % 700)}}


def write_dataset(
    folder: Path, shards: Sequence[int], split: str = "train", make: Callable[[int], Sample] = numbered
) -> Manifest:
    """A dataset with one shard of that many samples for each of ``shards``; sample i of the split is ``make(i)``.

    May be called again for another split of the same folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    tree = unsealed(path.read_bytes()) if path.exists() else _empty()
    first = 0
    for number, count in enumerate(shards):
        samples = [(f"{i:09d}", make(i)) for i in range(first, first + count)]
        tree["shards"].append(write_shard(folder, f"{split}-{number:06d}", split, samples))
        first += count
    path.write_bytes(sealed(tree))
    return read_manifest(folder)


def write_prepared(
    folder: Path, shards: Mapping[str, Sequence[int]], make: Callable[[int], Sample], info: Mapping[str, Any]
) -> Path:
    """A dataset of several splits that says ``info`` of itself; its folder."""
    for split, counts in shards.items():
        write_dataset(folder, counts, split, make)
    path = folder / "manifest.json"
    path.write_bytes(sealed(unsealed(path.read_bytes()) | {"info": dict(info)}))
    return folder


def write_shard(folder: Path, name: str, split: str, samples: Sequence[tuple[str, Sample]]) -> dict[str, Any]:
    """Writes tar and index; the shard's line of the manifest."""
    tar, rows = io.BytesIO(), []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, sample in samples:
            begin = tar.tell()
            for field, value in sorted(sample.items()):
                payload, extension = _encode(value)
                member = tarfile.TarInfo(f"{key}.{field}.{extension}")
                member.size = len(payload)
                archive.addfile(member, io.BytesIO(payload))
            raw = tar.getbuffer()[begin : tar.tell()]
            rows.append((begin, len(raw), xxhash.xxh3_64_intdigest(raw)))
            del raw
    index = io.BytesIO()
    np.save(index, np.array(rows, INDEX_DTYPE))
    (folder / f"{name}.tar").write_bytes(tar.getvalue())
    (folder / f"{name}.index.npy").write_bytes(index.getvalue())
    return {
        "name": name,
        "split": split,
        "samples": len(samples),
        "tar_size": len(tar.getvalue()),
        "tar_hash": xxhash.xxh3_128_hexdigest(tar.getvalue()),
        "index_hash": xxhash.xxh3_128_hexdigest(index.getvalue()),
    }


def _encode(value: Any) -> tuple[bytes, str]:
    if not isinstance(value, (np.ndarray, np.generic)):
        return json.dumps(value).encode(), "json"
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue(), "npy"


def _empty() -> dict[str, Any]:
    return {"format": FORMAT, "dataset": "test", "recipe": "test", "codec": None, "info": {}, "shards": []}
