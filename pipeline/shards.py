"""The format of a prepared dataset's shards, and their reader: plain WebDataset tars, an index beside each, one manifest over all.

    <data root>/<recipe>[-<codec>]/
      train-000000.tar          plain WebDataset: members `<key>.<field>.<ext>` of one sample stand together
      train-000000.index.npy    one row a sample: where its members (tar headers included) lie, and their checksum
      ...                       likewise valid-*, test-*
      manifest.json             written last; names every shard with its size and hash, says what the data is, and is sealed by a hash

Stock readers take the tars as a stream and cannot see a cut or a flipped header; this reader takes a sample with
one read by the index and checks it, so a damaged sample is found when it is read and named. Arrays go from the file
straight to where the caller wants them (``samples.SplitReader``).
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.manifest import ShardInfo

INDEX_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u8"), ("xxh3_64", "<u8")])
Entry = tuple[int, int, int]  # a row of the index: offset, size, checksum
ENTRY = struct.Struct("<QQQ")
BLOCK = 512  # tar's block size


class DamagedSample(Exception):
    """A sample whose bytes are not those that were written; the message names shard, row and what is wrong."""


class ShardReader:
    """Random access to one shard's samples, each checked as it is read; nothing of the index is kept in memory.

    Raises DamagedSample for a tar that is missing or not of the manifest's size, for an index that is missing or (with
    ``verify``; once a process is enough, since every sample has its own checksum) not the manifest's, and for a sample
    whose checksum differs. Raises OSError where the file system fails in another way.
    """

    def __init__(self, folder: Path, info: ShardInfo, verify: bool = True) -> None:
        self.info = info
        self.path = folder / f"{info.name}.tar"
        index_path = folder / f"{info.name}.index.npy"
        self._files: list[int] = []
        try:
            for path in (index_path, self.path):
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._index, self.tar = self._files
            self._first_row = os.fstat(self._index).st_size - info.samples * INDEX_DTYPE.itemsize
            size = os.fstat(self.tar).st_size
            if size != info.tar_size:
                raise DamagedSample(f"{self.path}: {size} bytes, the manifest says {info.tar_size}")
            if verify:
                self._verify(index_path)
        except FileNotFoundError as error:
            self.close()
            raise DamagedSample(f"{error.filename}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _verify(self, index_path: Path) -> None:
        """The index, and what follows the last sample in the tar: the two that no sample's checksum covers."""
        raw = _pread(self._index, os.fstat(self._index).st_size, 0)
        if xxhash.xxh3_128_hexdigest(raw) != self.info.index_hash:
            raise DamagedSample(f"{index_path}: not the bytes that the manifest names")
        index = np.load(io.BytesIO(raw), allow_pickle=False)
        if index.dtype != INDEX_DTYPE or index.shape != (self.info.samples,):
            raise DamagedSample(f"{index_path}: {index.shape} rows, the manifest says {self.info.samples} samples")
        end = int((index["offset"] + index["size"]).max(initial=0))
        if any(_pread(self.tar, self.info.tar_size - end, end)):
            raise DamagedSample(f"{self.path}: its end (from byte {end}) is not what was written")

    def __len__(self) -> int:
        return self.info.samples

    def close(self) -> None:
        self.tar = -1  # a number that no other file will ever be given
        while self._files:
            os.close(self._files.pop())

    def entry(self, row: int) -> Entry:
        """Offset and size in bytes of sample ``row`` in the tar, and its xxh3_64."""
        if not 0 <= row < self.info.samples:
            raise IndexError(f"{self.path} has samples 0..{self.info.samples - 1}, not {row}")
        raw = os.pread(self._index, ENTRY.size, self._first_row + row * ENTRY.size)
        if len(raw) != ENTRY.size:
            raise DamagedSample(f"{self.path}: its index ends before sample {row}")
        return ENTRY.unpack(raw)

    def key(self, row: int) -> str:
        """The key of sample ``row``, from its first tar header alone; only ``read`` checks what it stands in."""
        return _pread(self.tar, 100, self.entry(row)[0]).partition(b".")[0].decode(errors="replace")

    def read(self, row: int) -> bytes:
        """The raw tar members of sample ``row``, checked."""
        offset, size, checksum = self.entry(row)
        raw = _pread(self.tar, size, offset) if offset + size <= self.info.tar_size else b""
        if len(raw) != size or xxhash.xxh3_64_intdigest(raw) != checksum:
            raise DamagedSample(f"{self.path}: sample {row} (bytes {offset}..{offset + size}) is not what was written")
        return raw


def _pread(file: int, size: int, offset: int) -> bytes:
    """``size`` bytes, or fewer at the end of the file: one call may return less than it was asked for."""
    pieces = [os.pread(file, size, offset)]
    while (got := sum(map(len, pieces))) < size and pieces[-1]:
        pieces.append(os.pread(file, size - got, offset + got))
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]


def members(raw: bytes) -> dict[str, memoryview]:
    """``{"__key__": ..., "mel.npy": bytes, ...}`` from the raw tar members of one sample (checked, and ours: ustar)."""
    view = memoryview(raw)
    fields: dict[str, memoryview] = {}
    for key, field, start, size in walk(raw):
        fields.setdefault("__key__", memoryview(key))
        fields[field.decode()] = view[start : start + size]
    return fields


def walk(raw: bytes) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Key, field, start of the payload and its size in bytes, of every member in turn."""
    at = 0
    while at < len(raw):
        key, _, field = raw[at : at + 100].rstrip(b"\0").partition(b".")
        size = int(raw[at + 124 : at + 135], 8)
        yield key, field, at + BLOCK, size
        at += BLOCK + padded(size)


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def decode(fields: dict[str, memoryview]) -> dict[str, Any]:
    """Members by their extension, which is dropped: ``.npy`` to an array (never unpickled), ``.json`` to an object."""
    sample: dict[str, Any] = {}
    for name, payload in fields.items():
        stem, _, extension = name.rpartition(".")
        match extension:
            case "npy":
                sample[stem] = npy_array(payload).copy()
            case "json":
                sample[stem or "json"] = json.loads(bytes(payload))
            case "__key__":
                sample["__key__"] = bytes(payload).decode()
            case _:
                raise ValueError(f"a member .{extension} has no decoder here; known: .npy, .json")
    return sample


def npy_array(payload: memoryview) -> np.ndarray:
    """A read-only view of the array in a .npy file; ValueError where it is none, or not of plain numbers."""
    dtype, shape, fortran, start = npy_header(bytes(payload[: npy_start(payload)]))
    flat = np.frombuffer(payload, dtype, offset=start, count=math.prod(shape))
    return flat.reshape(shape, order="F" if fortran else "C")


def npy_start(payload: memoryview) -> int:
    """Where the numbers begin: after magic (6 bytes), version (2), header length (2; since version 2: 4) and header."""
    at = 12 if payload[6] > 1 else 10
    return at + int.from_bytes(payload[8:at], "little")


@lru_cache(maxsize=256)  # the samples of a recipe share a few headers
def npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """dtype, shape, whether in Fortran order, and the header's length; ValueError for objects (nothing is unpickled)."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of {dtype}; only plain numbers are read")
    return dtype, shape, fortran, len(header)
