"""What a prepared dataset says of itself: ``manifest.json``, sealed by a hash. Without NumPy: a launch reads it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from pipeline.errors import UserError

FORMAT = 1
SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
SEAL = b',\n "seal": "'  # what stands between a manifest's content and its hash


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
    """What a prepared dataset is.

    ``info`` is the recipe's own (instrument names, statistics) and reaches the train module.
    """

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
    """The manifest of a prepared dataset; UserError where the folder holds none, it is damaged, or of another format."""
    path = folder / MANIFEST
    try:
        tree = unsealed(path.read_bytes())
        if tree["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {tree['format']}, this version reads {FORMAT}; prepare the dataset again."
            )
        shards = tuple(ShardInfo(**shard) for shard in tree["shards"])
        return Manifest(folder, tree["dataset"], tree["recipe"], tree["codec"], tree["info"], shards)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no prepared dataset ({MANIFEST} is missing).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); run prepare.py again: it rewrites what is not intact."
        ) from None


def sealed(tree: dict[str, Any]) -> bytes:
    """A manifest's bytes: JSON whose last entry is the xxh3_128 of all the bytes before it."""
    body = json.dumps(tree, indent=1, allow_nan=False).removesuffix("\n}").encode()
    return body + _seal(body)


def unsealed(raw: bytes) -> dict[str, Any]:
    """What was sealed; ValueError where any bit of it, or of the seal, is not as it was written."""
    body, found, _ = raw.rpartition(SEAL)
    if not found or raw[len(body) :] != _seal(body):
        raise ValueError("its content does not have the hash that it ends in")
    tree: dict[str, Any] = json.loads(body + b"}")
    return tree


def _seal(body: bytes) -> bytes:
    return SEAL + xxhash.xxh3_128_hexdigest(body).encode() + b'"\n}\n'
