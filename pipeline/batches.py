"""One batch: which samples it holds, what stands in for damaged ones, and the memory it is read into."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.errors import RunFailed
from pipeline.manifest import Manifest
from pipeline.order import Order
from pipeline.samples import Signature, SplitReader, stand_ins
from pipeline.shards import DamagedSample

Batch = dict[str, torch.Tensor]  # as in ``train_module``
Arrays = dict[str, np.ndarray]  # by name, (rows, ...)
ALIGNMENT = 64  # bytes; a cache line
OTHER = "other_"  # before the names of a partner's fields


class Positions:
    """Which positions p the n-th global batch after ``start`` takes, and which of them are this rank's.

    ``skip`` holds [begin, end) ranges of p that are jumped over; they may touch and overlap. No position reaches ``end``.
    """

    def __init__(
        self, batch_size: int, rank: int, world_size: int, start: int, skip: Sequence[Sequence[int]], end: int | None
    ) -> None:
        self.batch_size, self.rank, self.world_size, self.start, self.end = batch_size, rank, world_size, start, end
        self.skip: list[tuple[int, int]] = []
        for begin, stop in sorted((int(a), int(b)) for a, b in skip):
            if self.skip and begin <= self.skip[-1][1]:
                self.skip[-1] = (self.skip[-1][0], max(stop, self.skip[-1][1]))
            elif begin < stop:
                self.skip.append((begin, stop))
        # What is not skipped has consecutive numbers; a number and its position differ by what was jumped before it.
        lengths = [stop - begin for begin, stop in self.skip]
        self._jumped = np.cumsum([0, *lengths], dtype=np.int64)
        self._jump_at = np.array([begin for begin, _ in self.skip], np.int64) - self._jumped[:-1]
        self._first = start - sum(min(max(start - begin, 0), stop - begin) for begin, stop in self.skip)

    @property
    def rows(self) -> int:
        """The most that one batch holds on this rank."""
        return -(-self.batch_size // self.world_size)

    def of_batch(self, batch: int) -> np.ndarray:
        """This rank's positions in global batch number ``batch`` (0: the first after ``start``), int64 (B,)."""
        first = batch * self.batch_size
        count = self.batch_size if self.end is None else min(self.batch_size, self.end - self.start - first)
        return self._positions(
            first + count * self.rank // self.world_size, first + count * (self.rank + 1) // self.world_size
        )

    def after(self, batches: int) -> int:
        """The position that follows the last one of the first ``batches`` batches."""
        last = batches * self.batch_size - 1
        return int(self._positions(last, last + 1)[0]) + 1 if batches else self.start

    def _positions(self, first: int, last: int) -> np.ndarray:
        numbers = np.arange(self._first + first, self._first + last)
        return numbers + self._jumped[np.searchsorted(self._jump_at, numbers, side="right")]


class Fault(NamedTuple):
    """One row of a batch that holds another sample than it should."""

    what: str  # the sentence that names the damage: of one sample, or of its whole shard
    sample: int
    stand_in: int


class Report(NamedTuple):
    """What there is to say of a batch that was read; JSON carries it from a worker."""

    faults: list[Fault]
    failure: str | None = None  # a sentence, where no batch could be made


Item = tuple[Batch, Report]


class Damage:
    """How much of what was read lately is stand-ins, and whether that is too much to train on.

    Too much: more than 1 % of the last 10,000 rows, however many were read, and not for ever the same few.
    """

    WINDOW = 10_000  # rows
    SHARE = 0.01
    FEW = 10  # damaged samples that a small dataset may meet in every epoch

    def __init__(self) -> None:
        self._batches: deque[tuple[int, int]] = deque()  # (rows, stand-ins)
        self._rows = self._stand_ins = 0
        self._samples: set[int] = set()

    def count(self, rows: int, faults: Sequence[Fault]) -> None:
        self._batches.append((rows, len(faults)))
        self._rows += rows
        self._stand_ins += len(faults)
        self._samples |= {fault.sample for fault in faults}
        while self._rows - self._batches[0][0] >= self.WINDOW:
            gone, replaced = self._batches.popleft()
            self._rows -= gone
            self._stand_ins -= replaced

    def too_much(self) -> str | None:
        """In words; None where it is not."""
        if self._stand_ins <= self.SHARE * self.WINDOW or len(self._samples) <= self.FEW:
            return None
        return f"{self._stand_ins} of the last {self._rows} rows ({len(self._samples)} different samples) are damaged"


class BatchReader:
    """Reads this rank's share of any batch. Not for several threads at once.

    ``partners`` is the order of the samples that stand beside those of ``order``, where there are any.
    """

    def __init__(
        self, manifest: Manifest, split: str, order: Order, positions: Positions, partners: Order | None = None
    ) -> None:
        self.manifest, self.split, self.order, self.positions = manifest, split, order, positions
        self.partners = partners
        self.samples = SplitReader(manifest, split)

    def close(self) -> None:
        self.samples.close()

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes of a sample's arrays; RunFailed where no sample is intact."""
        try:
            own = self.samples.signature
        except DamagedSample as error:
            raise RunFailed(self._nothing_intact(str(error))) from error
        return own if self.partners is None else own | {f"{OTHER}{name}": kind for name, kind in own.items()}

    def read(self, batch: int, into: Arrays) -> Report:
        """Fill the first rows of ``into`` with batch ``batch``; what is damaged is replaced and told."""
        positions, own = self.positions.of_batch(batch), into
        faults: list[Fault] = []
        try:
            if self.partners is not None:
                own = {name: array for name, array in into.items() if not name.startswith(OTHER)}
                others = {name: into[f"{OTHER}{name}"] for name in own}
                self._read(self.partners.ids(positions), others, faults)
            self._read(self.order.ids(positions), own, faults)
        except RunFailed as error:
            return Report(faults, str(error))
        return Report(faults)

    def _read(self, ids: np.ndarray, into: Arrays, faults: list[Fault]) -> None:
        places = {name: array.reshape(len(array), -1).view(np.uint8) for name, array in into.items()}
        later = []
        for i in np.argsort(ids, kind="stable").tolist():  # as they lie on disk
            rows = {name: place[i] for name, place in places.items()}
            if not self.samples.fill_if_cached(int(ids[i]), rows):
                later.append((int(ids[i]), rows))
        for number, rows in later:
            self._fill(number, rows, faults)

    def _fill(self, number: int, rows: Arrays, faults: list[Fault]) -> None:
        try:
            self.samples.fill(number, rows)
        except DamagedSample as error:
            stand_in, _ = self._stand_in(number, error, lambda other: self.samples.fill(other, rows))
            faults.append(Fault(str(error), number, stand_in))

    def sample(self, number: int) -> dict[str, Any]:
        """Sample ``number``, or what stands in for it, decoded with its JSON."""
        try:
            return self.samples.sample(number)
        except DamagedSample as error:
            return self._stand_in(number, error, self.samples.sample)[1]

    def _stand_in(self, number: int, damage: DamagedSample, read: Callable[[int], Any]) -> tuple[int, Any]:
        for other in stand_ins(number, len(self.samples)):
            with contextlib.suppress(DamagedSample):
                return other, read(other)
        raise RunFailed(self._nothing_intact(str(damage)))

    def _nothing_intact(self, damage: str) -> str:
        return (
            f"{self.manifest.folder} has no intact {self.split} sample left to train on ({damage}); prepare it again."
        )


class Memory:
    """Memory for batches that is used again once no tensor refers to it: a fresh page costs as much as reading into it."""

    def __init__(self, signature: Signature, rows: int, pin: bool = False) -> None:
        self._fields: list[tuple[str, int, np.dtype, tuple[int, ...]]] = []  # name, where it begins, dtype, shape
        self.size = 0
        for name, (dtype, shape) in signature.items():
            self._fields.append((name, self.size, dtype, (rows, *shape)))
            self.size += -(-rows * dtype.itemsize * math.prod(shape) // ALIGNMENT) * ALIGNMENT
        self._pin = pin
        self._free: list[memoryview] = []

    def take(self) -> Batch:
        """Tensors for one batch, filled with anything."""
        if self._pin:  # torch keeps the account of such memory, since it knows which copies to the GPU are under way
            block = torch.empty(self.size, dtype=torch.uint8, pin_memory=True)
            return {
                name: block[begin : begin + math.prod(shape) * dtype.itemsize].view(_torch_dtype(dtype)).view(shape)
                for name, begin, dtype, shape in self._fields
            }
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self.size, np.uint8).data  # numpy asks for huge pages
        return to_tensors(self.arrays(memory, lambda: self._free.append(memory)))

    def arrays(self, memory: memoryview, when_gone: Callable[[], None] | None = None) -> Arrays:
        """The arrays of a batch within ``memory``; ``when_gone`` is called once they, and tensors of them, are gone."""
        block = np.frombuffer(memory, np.uint8)  # every view of it refers to it, not to ``memory``
        if when_gone is not None:
            weakref.finalize(block, when_gone).atexit = False
        return {
            name: block[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for name, begin, dtype, shape in self._fields
        }


def to_tensors(arrays: Arrays) -> Batch:
    """The same memory as tensors."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def to_arrays(batch: Batch) -> Arrays:
    """The same memory as arrays."""
    return {name: tensor.numpy() for name, tensor in batch.items()}


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
