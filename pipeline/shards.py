"""The format of a prepared dataset, and its reader: plain WebDataset tars, an index beside each, one manifest over all.

    <data root>/<recipe>[-<codec>]/
      train-000000.tar          plain WebDataset: members `<key>.<field>.<ext>` of one sample stand together
      train-000000.index.npy    one row a sample: where its members (tar headers included) lie, and their checksum
      ...                       likewise valid-*, test-*
      manifest.json             written last; names every shard with its size and hash, and says what the data is

Stock readers take the tars as a stream and cannot see a cut or a flipped header; this reader takes a sample with
one `pread` by the index and checks it, so a damaged sample is found when it is read and named.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.errors import UserError

FORMAT = 1
SPLITS = ("train", "valid", "test")
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u8"), ("xxh3_64", "<u8")])
BLOCK = 512  # tar's block size


class DamagedSample(Exception):
    """A sample whose bytes are not those that were written; the message names shard, row and what is wrong."""


@dataclass(frozen=True)
class ShardInfo:
    """One line of the manifest. ``name`` without ``.tar``; sizes in bytes; hashes are xxh3_128 in hex."""

    name: str
    split: str
    samples: int
    tar_size: int
    tar_hash: str
    index_hash: str


@dataclass(frozen=True)
class Manifest:
    """What a prepared dataset is. ``info`` is the recipe's own (instrument names, statistics) and reaches the train module."""

    folder: Path
    dataset: str
    recipe: str
    codec: str | None
    info: dict[str, Any]
    shards: tuple[ShardInfo, ...]

    @property
    def identity(self) -> str:
        """sha256 over what the data is and every shard's hash: equal exactly where the bytes are equal."""
        facts = {
            "recipe": self.recipe,
            "codec": self.codec,
            "info": self.info,
            "shards": [(s.name, s.samples, s.tar_hash) for s in self.shards],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def split(self, name: str) -> tuple[ShardInfo, ...]:
        return tuple(s for s in self.shards if s.split == name)

    def samples(self, split: str) -> int:
        return sum(s.samples for s in self.split(split))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared dataset; UserError where the folder holds none or it is of another format."""
    path = folder / "manifest.json"
    try:
        tree = json.loads(path.read_text())
        if tree["format"] != FORMAT:
            raise UserError(f"{path} is of format {tree['format']}, this version reads {FORMAT}; prepare the dataset again.")
        shards = tuple(ShardInfo(**shard) for shard in tree["shards"])
        return Manifest(folder, tree["dataset"], tree["recipe"], tree["codec"], tree["info"], shards)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no prepared dataset (manifest.json is missing).") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); run prepare.py again, it rewrites what is not intact.") from None


class ShardReader:
    """Random access to one shard's samples, each checked as it is read.

    Raises DamagedSample for a tar or index whose size is not the manifest's (at open) and for a sample whose checksum differs (at read).
    """

    def __init__(self, folder: Path, info: ShardInfo) -> None:
        self.info = info
        self.path = folder / f"{info.name}.tar"
        index_path = folder / f"{info.name}.index.npy"
        try:
            raw = index_path.read_bytes()
            if xxhash.xxh3_128_hexdigest(raw) != info.index_hash:
                raise DamagedSample(f"{index_path}: not the bytes that the manifest names")
            self.index = np.load(io.BytesIO(raw), allow_pickle=False)
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise DamagedSample(f"{error.filename or self.path}: {error.strerror}") from error
        size = os.fstat(self._fd).st_size
        if size != info.tar_size:
            os.close(self._fd)
            raise DamagedSample(f"{self.path}: {size} bytes, the manifest says {info.tar_size}")

    def __len__(self) -> int:
        return len(self.index)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, row: int) -> bytes:
        """The raw tar members of sample ``row``, checked."""
        entry = self.index[row]
        offset, size = int(entry["offset"]), int(entry["size"])
        raw = os.pread(self._fd, size, offset)
        if len(raw) != size or xxhash.xxh3_64_intdigest(raw) != int(entry["xxh3_64"]):
            raise DamagedSample(f"{self.path}: sample {row} (bytes {offset}..{offset + size}) is not what was written")
        return raw


def members(raw: bytes) -> dict[str, memoryview]:
    """``{"__key__": ..., "mel.npy": bytes, ...}`` from the raw tar members of one sample (already checked, ours: ustar)."""
    view, fields, at = memoryview(raw), {}, 0
    while at < len(raw):
        name = bytes(view[at : at + 100]).rstrip(b"\0").decode()
        size = int(bytes(view[at + 124 : at + 135]), 8)
        key, _, field = name.partition(".")
        fields.setdefault("__key__", memoryview(key.encode()))
        fields[field] = view[at + BLOCK : at + BLOCK + size]
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return fields


def decode(fields: dict[str, memoryview]) -> dict[str, Any]:
    """Members by their extension: ``.npy`` to an array (never pickled), ``.json`` to an object; the extension is dropped."""
    sample: dict[str, Any] = {}
    for name, payload in fields.items():
        stem, _, extension = name.rpartition(".")
        match extension:
            case "npy":
                sample[stem] = np.load(io.BytesIO(payload), allow_pickle=False)
            case "json":
                sample[stem or "json"] = json.loads(bytes(payload))
            case "__key__":
                sample["__key__"] = bytes(payload).decode()
            case _:
                raise ValueError(f"a member .{extension} has no decoder here; known: .npy, .json")
    return sample
