"""Writing one shard: a plain ustar tar whose bytes depend on its samples alone, and the index that ``pipeline.shards`` reads.

Written under a name of this process, fsynced, read back and compared; ``commit`` gives the files their names.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from data_prep.stage import Fields
from pipeline.errors import RunFailed
from pipeline.files import fsync_folder, hash_file
from pipeline.shards import BLOCK, INDEX_DTYPE

NAME_LIMIT = 100  # bytes of a member's name in a ustar header without prefix


class NotWritten(RunFailed):
    """What was read back is not what was written; the message names the file."""


@dataclass(frozen=True)
class Written:
    """Sizes in bytes, hashes xxh3_128 in hex."""

    samples: int
    tar_size: int
    tar_hash: str
    index_size: int
    index_hash: str


def member(name: str, *payload: bytes | memoryview) -> list[bytes | memoryview]:
    """One tar member in pieces, header and padding included; owner, time and mode are fixed."""
    if len(name.encode()) > NAME_LIMIT:
        raise ValueError(f"member name '{name}' is longer than {NAME_LIMIT} bytes")
    header = tarfile.TarInfo(name)
    header.size, header.mode = sum(map(len, payload)), 0o644
    return [header.tobuf(tarfile.USTAR_FORMAT), *payload, b"\0" * (-header.size % BLOCK)]


def encode(key: str, fields: Fields) -> list[bytes | memoryview]:
    """One sample's members in pieces, sorted by field. ValueError for a key with a dot and for arrays of objects."""
    if "." in key:
        raise ValueError(f"key '{key}' holds a dot, which ends a key in WebDataset")
    pieces: list[bytes | memoryview] = []
    for field, value in sorted(fields.items()):
        if isinstance(value, np.ndarray):
            pieces += member(f"{key}.{field}.npy", *_npy(value))
        else:
            text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
            pieces += member(f"{key}.{field}.json", text.encode())
    return pieces


def _npy(array: np.ndarray) -> list[bytes | memoryview]:
    """An array as a .npy file, in C order: header, and the array's own memory where it, or every row of it, lies in that order."""
    if array.dtype.hasobject:
        raise ValueError("Object arrays would have to be pickled, and nothing is unpickled here")
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, facts)
    # A segment is cut from a longer recording: its tracks do not follow on each other, and need not be copied for that
    rows = [*array] if array.ndim == 2 and not array.flags.c_contiguous else [array]
    return [header.getvalue(), *(np.asarray(row, order="C").reshape(-1).view(np.uint8).data for row in rows)]


class ShardWriter:
    """Writes ``<stem>.tar`` and ``<stem>.index.npy`` in ``folder``; use as a context manager, call ``finish`` inside.

    Left without ``finish``, it removes what it wrote.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.tar_path, self.index_path = folder / f"{stem}.tar", folder / f"{stem}.index.npy"
        self._file = self.tar_path.open("wb")
        self._hash = xxhash.xxh3_128()
        self._rows: list[tuple[int, int, int]] = []
        self._keys: set[str] = set()
        self._offset = 0
        self._finished = False

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._finished:
            self.tar_path.unlink(missing_ok=True)
            self.index_path.unlink(missing_ok=True)

    def add(self, key: str, fields: Fields) -> None:
        """Append one sample. ValueError where the shard has one of that key already."""
        if key in self._keys:
            raise ValueError(f"two samples of the key '{key}'")
        self._keys.add(key)
        start, digest = self._offset, xxhash.xxh3_64()
        for piece in encode(key, fields):
            digest.update(piece)
            self._write(piece)
        self._rows.append((start, self._offset - start, digest.intdigest()))

    def finish(self) -> Written:
        """End the tar, write the index, make both durable and read them back. Raises NotWritten."""
        end = 2 * BLOCK
        self._write(b"\0" * (end + -(self._offset + end) % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        buffer = io.BytesIO()
        np.save(buffer, np.array(self._rows, dtype=INDEX_DTYPE), allow_pickle=False)
        index = buffer.getvalue()
        with self.index_path.open("wb") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        index_hash = xxhash.xxh3_128_hexdigest(index)
        written = Written(len(self._rows), self._offset, self._hash.hexdigest(), len(index), index_hash)
        wrong = differences(self.tar_path, self.index_path, written)
        if wrong:
            raise NotWritten("; ".join(wrong))
        self._finished = True
        return written

    def _write(self, piece: bytes | memoryview) -> None:
        self._file.write(piece)
        self._hash.update(piece)
        self._offset += len(piece)


def commit(writer: ShardWriter, folder: Path, name: str) -> None:
    """Give a finished shard's tar, then its index, their final names in ``folder``, durably."""
    writer.tar_path.replace(folder / f"{name}.tar")
    writer.index_path.replace(folder / f"{name}.index.npy")
    fsync_folder(folder)


def differences(tar_path: Path, index_path: Path, expected: Written) -> list[str]:
    """One sentence for each way in which the two files are not ``expected``; every byte is read."""
    return [
        sentence
        for path, size, digest in (
            (tar_path, expected.tar_size, expected.tar_hash),
            (index_path, expected.index_size, expected.index_hash),
        )
        if (sentence := difference(path, size, digest))
    ]


def difference(path: Path, size: int, digest: str) -> str:
    """What is wrong with one file, or the empty string."""
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path.name} is {found} bytes long, not {size}"
        return "" if hash_file(path) == digest else f"{path.name} does not hold the bytes that were written"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
