"""Random access to the samples of one split, and what stands in for a damaged one.

A sample's arrays are read from the shard straight into the rows of a batch: their place within its bytes is learned
from one sample and checked on every other, so a batch costs one read and one checksum a sample and no copy.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from pipeline.manifest import Manifest
from pipeline.shards import (
    DamagedSample,
    Entry,
    ShardReader,
    decode,
    members,
    npy_array,
    npy_header,
    npy_start,
    padded,
    walk,
)

OPEN_SHARDS = 128  # two files each; more than the 64 places that a window of the loader's order touches
MAX_LAYOUTS = 64  # kinds of samples whose arrays are read in place; others take the slower way
MAX_ARRAYS = 500  # of a sample read in place: two buffers each, and the kernel takes 1,024 at once
STAND_INS = 100  # samples tried in place of a damaged one before the split counts as lost
NO_WAITING = getattr(os, "RWF_NOWAIT", 0)  # Linux


def fetch(file: int, entry: Entry) -> None:
    """Have the operating system begin to read a sample, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, entry[0], entry[1], os.POSIX_FADV_WILLNEED)


def stand_ins(number: int, count: int) -> Iterator[int]:
    """Which of ``count`` samples to try, in turn, where sample ``number`` is damaged: a function of these two alone.

    They are drawn from everywhere, so that the samples of a lost shard are not all replaced by the same one.
    """
    for attempt in range(STAND_INS):
        yield xxhash.xxh3_64_intdigest(struct.pack("<qq", number, attempt)) % count


Signature = dict[str, tuple[np.dtype, tuple[int, ...]]]  # a sample's arrays by name: native dtype and shape


class SplitReader:
    """Random access to every sample of one split by its number: shard after shard in the manifest's order.

    A few shards are open at a time, so memory and files do not grow with the data. Not for several threads at once.
    """

    def __init__(self, manifest: Manifest, split: str, open_shards: int = OPEN_SHARDS) -> None:
        self.manifest, self.split = manifest, split
        self.folder, self.shards = manifest.folder, manifest.split(split)
        self._starts = list(itertools.accumulate((s.samples for s in self.shards), initial=0))
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._open_shards = open_shards
        self._verified = bytearray(len(self.shards))  # 1 where this process has checked the shard's index
        self._broken: dict[int, str] = {}  # what is wrong with a shard that cannot be opened
        self._layouts: dict[int, Layout] = {}  # by the size of a sample, as learned from one of that size

    def __len__(self) -> int:
        return self._starts[-1]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def sample(self, number: int) -> dict[str, Any]:
        """Sample ``number`` decoded, with its JSON (see ``decode``); raises DamagedSample."""
        return self._checked(number, lambda reader, row: decode(members(reader.read(row))))

    @cached_property
    def signature(self) -> Signature:
        """Names, dtypes and shapes that all samples must have: those of the first intact one; DamagedSample if none is."""
        for number in (0, *stand_ins(0, len(self))):
            try:
                sample = self.sample(number)
            except DamagedSample as error:
                last = error
            else:
                return _signature({n: a for n, a in sample.items() if isinstance(a, np.ndarray)})
        raise last

    def fill(self, number: int, rows: dict[str, np.ndarray]) -> None:
        """Read the arrays of sample ``number`` into ``rows``: by name, its bytes, uint8 (nbytes,), contiguous.

        Raises DamagedSample; ``rows`` then hold anything.
        """
        self._checked(number, lambda reader, row: self._fill(reader, row, rows))

    def fill_if_cached(self, number: int, rows: dict[str, np.ndarray]) -> bool:
        """``fill``, if the operating system has the sample in memory; else False, and it begins to fetch it.

        So storage that is slow to answer is asked for all of a batch at once.
        """
        shard = bisect_right(self._starts, number) - 1
        try:
            reader = self._reader(shard)
            entry = reader.entry(number - self._starts[shard])
            layout = self._layouts.get(entry[1])
            try:
                cached = layout is not None and layout.read(reader.tar, entry, rows, NO_WAITING)
            except OSError:  # not in memory, or a file system that cannot tell
                cached = False
            if not cached:
                fetch(reader.tar, entry)
            return cached
        except (DamagedSample, OSError):  # told by ``fill``
            return False

    def _fill(self, reader: ShardReader, row: int, rows: dict[str, np.ndarray]) -> None:
        entry = reader.entry(row)
        layout = self._layouts.get(entry[1])
        if layout is not None and layout.read(reader.tar, entry, rows):
            return
        raw = reader.read(row)  # laid out in another way, or damaged: this says which
        arrays = {name[:-4]: npy_array(field) for name, field in members(raw).items() if name.endswith(".npy")}
        if _signature(arrays) != self.signature:
            raise ValueError(f"it holds {_spell(_signature(arrays))} where others hold {_spell(self.signature)}")
        for name, array in arrays.items():
            rows[name].view(self.signature[name][0])[...] = array.reshape(-1)
        if len(self._layouts) < MAX_LAYOUTS and Layout.serves(raw):
            self._layouts[len(raw)] = Layout(raw)

    def _checked(self, number: int, use: Callable[[ShardReader, int], Any]) -> Any:
        """``use(reader, row)`` for sample ``number``; whatever is wrong with it becomes a DamagedSample that names it.

        The file system gets a second chance with a newly opened file: a server that came back has new handles.
        """
        shard = bisect_right(self._starts, number) - 1
        row = number - self._starts[shard]
        try:
            try:
                return use(self._reader(shard), row)
            except OSError:
                if shard in self._open:
                    self._open.pop(shard).close()
                return use(self._reader(shard), row)
        except OSError as error:
            raise DamagedSample(f"{self._name(shard)}: sample {row} cannot be read ({error.strerror})") from error
        except (
            ValueError,
            KeyError,
            IndexError,
            OverflowError,
        ) as error:  # the bytes are those that were written, and make no sense
            raise DamagedSample(f"{self._name(shard)}: sample {row} cannot be decoded ({error})") from error

    def _name(self, shard: int) -> str:
        return f"{self.folder / self.shards[shard].name}.tar"

    def _reader(self, shard: int) -> ShardReader:
        reader = self._open.get(shard)
        if reader is not None:
            self._open.move_to_end(shard)
            return reader
        if shard in self._broken:
            raise DamagedSample(self._broken[shard])
        try:
            reader = ShardReader(self.folder, self.shards[shard], verify=not self._verified[shard])
        except DamagedSample as error:
            self._broken[shard] = str(error)
            raise
        self._verified[shard] = 1
        self._open[shard] = reader
        if len(self._open) > self._open_shards:
            self._open.popitem(last=False)[1].close()
        return reader


class Layout:
    """Where the arrays lie within a sample's bytes, learned from one sample and checked on every other.

    With it one read puts each array where the caller wants it, and what lies between (tar and array headers, JSON)
    into a scratch buffer.
    """

    @staticmethod
    def serves(raw: bytes) -> bool:
        """Whether the arrays of this sample lie in its bytes as they do in memory, and are few enough for one read."""
        payloads = [
            memoryview(raw)[start : start + size] for _, field, start, size in walk(raw) if field.endswith(b".npy")
        ]
        headers = [npy_header(bytes(payload[: npy_start(payload)])) for payload in payloads]
        return len(payloads) < MAX_ARRAYS and all(dtype.isnative and not fortran for dtype, _, fortran, _ in headers)

    def __init__(self, raw: bytes) -> None:
        gaps: list[tuple[int, int] | str] = []  # stretches of the scratch buffer, and between them an array's name
        pattern: list[bytes] = []  # of what the scratch buffer must hold; see _fits
        self._headers: list[tuple[int, bytes]] = []  # of the arrays, and where in the scratch buffer
        self._padded: list[int] = []  # bytes of each member that is no array
        taken = at = 0  # bytes of arrays so far; where the running gap begins
        for _, field, start, size in walk(raw):
            # The first dot of a member's name ends its key. Then its size, and what else its header says.
            name = b"(?=[^.]{0,99}" + re.escape(b"." + field + b"\0") + b").{124}"
            if not field.endswith(b".npy"):
                pattern += [name, b"([0-7]{11}).{377}.{%d}" % padded(size)]
                self._padded.append(padded(size))
                continue
            payload = memoryview(raw)[start : start + size]
            header = bytes(payload[: npy_start(payload)])
            pattern += [name, b"%011o.{377}" % size, b".{%d}" % (len(header) + padded(size) - size)]
            self._headers.append((start - taken, header))
            gaps += [(at - taken, start + len(header) - taken), field.decode()[:-4]]
            at = start + size
            taken += size - len(header)
        gaps.append((at - taken, len(raw) - taken))
        self._scratch = bytearray(len(raw) - taken)
        self._pattern = re.compile(b"".join(pattern), re.DOTALL)
        view = memoryview(self._scratch)
        self._buffers: list[Any] = [None if isinstance(gap, str) else view[slice(*gap)] for gap in gaps]
        self._arrays = [(place, gap) for place, gap in enumerate(gaps) if isinstance(gap, str)]

    def read(self, file: int, entry: Entry, rows: dict[str, np.ndarray], flags: int = 0) -> bool:
        """Read a sample's arrays into ``rows``; whether it is what was written, and laid out like this."""
        offset, size, checksum = entry
        buffers = self._buffers.copy()
        for place, name in self._arrays:
            buffers[place] = rows[name]
        if os.preadv(file, buffers, offset, flags) != size:
            return False
        digest = xxhash.xxh3_64()
        for buffer in buffers:
            digest.update(buffer)
        return digest.intdigest() == checksum and self._fits()

    def _fits(self) -> bool:
        """Whether what came with the arrays are the same members, sizes (JSON's: in blocks) and array headers."""
        match = self._pattern.fullmatch(self._scratch)  # one call: a small sample is read in the time of a few
        return (
            match is not None
            and [padded(int(size, 8)) for size in match.groups()] == self._padded
            and all(self._scratch.startswith(header, at) for at, header in self._headers)
        )


def _signature(arrays: dict[str, np.ndarray]) -> Signature:
    return {name: (array.dtype.newbyteorder("="), array.shape) for name, array in sorted(arrays.items())}


def _spell(signature: Signature) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in signature.items()) or "no arrays"
