"""Shards to batches, exactly: which samples a step trains on depends on (data, seed, position) and on nothing else.

Step t of a run takes the next ``batch_size`` positions p, rank r its contiguous share of them, and ``order`` says which
sample stands at p. So the global sequence is the same for every world size and number of workers; batches straddle
epochs; and the only state is the p of the last *trained* step, whatever has been read ahead.

A damaged sample is replaced by another (a function of the damaged one alone), counted and named; see ``faults``.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.errors import RunFailed, UserError
from pipeline.order import Order, block_size
from pipeline.samples import SplitReader, stand_ins
from pipeline.shards import DamagedSample, Manifest
from pipeline.workers import read_in_processes

Batch = dict[str, torch.Tensor]  # as in ``train_module``
AHEAD = 2  # batches that the thread of ``workers=0`` reads ahead
EVALUATION_SEED = 0  # evaluation has one order for ever, and a limited one must not see the first shards only


class Positions:
    """Which positions p the n-th global batch after ``start`` takes, and which of them are this rank's.

    ``skip`` holds [begin, end) ranges of p that are jumped over; they may touch and overlap. ``end``: no position from there on.
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


class Item(NamedTuple):
    """What is read for one batch number; ``failure`` is a sentence where no batch could be made."""

    batch: Batch
    faults: list[Fault]
    failure: str | None = None


class BatchReader(Dataset[Item]):
    """Map-style: a batch number to this rank's share of that batch. Sent to worker processes before its first read."""

    def __init__(self, manifest: Manifest, split: str, order: Order, positions: Positions, pin_memory: bool) -> None:
        self.samples = SplitReader(manifest, split)
        self.where = f"{manifest.folder} ({split})"
        self.order, self.positions, self.pin_memory = order, positions, pin_memory

    def __getitem__(self, number: int) -> Item:
        try:
            positions = self.positions.of_batch(number)
            faults: list[Fault] = []
            batch = self._read(self.order.ids(positions), faults)
        except RunFailed as error:  # as a value: an exception from a worker arrives wrapped in a traceback
            return Item({}, [], str(error))
        batch["position"] = torch.from_numpy(positions)
        return Item(batch, faults)

    def _read(self, ids: np.ndarray, faults: list[Fault]) -> Batch:
        batch, rows = self._allocate(len(ids))
        for i in np.argsort(ids, kind="stable").tolist():  # as they lie on disk
            fault = self.fill(int(ids[i]), {name: array[i] for name, array in rows.items()})
            if fault is not None:
                faults.append(fault)
        return batch

    def _allocate(self, count: int) -> tuple[Batch, dict[str, np.ndarray]]:
        """A batch to be filled, and the same memory as bytes: uint8 (count, bytes of one sample's array) each."""
        try:
            signature = self.samples.signature
        except DamagedSample as error:
            raise RunFailed(f"{self.where}: no intact sample was found; {error}. Verify it with prepare.py.") from error
        batch, rows = {}, {}
        for name, (dtype, shape) in signature.items():
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            batch[name] = torch.empty((count, *shape), dtype=kind, pin_memory=self.pin_memory)
            rows[name] = batch[name].numpy().reshape(count, -1).view(np.uint8)
        return batch, rows

    def fill(self, number: int, rows: dict[str, np.ndarray]) -> Fault | None:
        """Sample ``number``, or what stands in for it, into ``rows``; RunFailed where nothing can."""
        return self.replacing(number, lambda n: self.samples.fill(n, rows))[1]

    def replacing(self, number: int, read: Callable[[int], Any]) -> tuple[Any, Fault | None]:
        """``read(number)``, or of the first stand-in that is intact."""
        try:
            return read(number), None
        except DamagedSample as error:
            what = str(error)
        for other in stand_ins(number, len(self.samples)):
            with contextlib.suppress(DamagedSample):
                return read(other), Fault(what, number, other)
        raise RunFailed(f"{self.where}: no intact sample was found to stand in; {what}. Verify it with prepare.py.")


class _Batches:
    """What training and evaluation share: one rank's stream of batches, and the account of what was damaged."""

    def __init__(self, manifest: Manifest, split: str, seed: int, positions: Positions, pin_memory: bool) -> None:
        self.samples = manifest.samples(split)
        mean = sum(shard.tar_size for shard in manifest.split(split)) / self.samples
        self._order = Order(self.samples, seed, block_size(mean))
        self._positions = positions
        self._reader = BatchReader(manifest, split, self._order, positions, pin_memory)
        self.substituted = 0  # rows handed out that hold a stand-in
        self._named: set[str] = set()
        self._unreported: list[str] = []

    def faults(self) -> list[str]:
        """One sentence for each damaged sample or shard met on this rank since the last call; each is named once."""
        new, self._unreported = self._unreported, []
        return new

    def _hand_out(self, item: Item) -> Batch:
        if item.failure is not None:
            raise RunFailed(item.failure)
        self.substituted += len(item.faults)
        for what, sample, stand_in in item.faults:
            if what not in self._named:
                self._named.add(what)
                self._unreported.append(f"{what}: sample {stand_in} of the split stands in for {sample}")
        return item.batch


class Loader(_Batches):
    """This rank's batches of a training run, for ever.

    A batch holds one tensor (batch_size / world_size, ...) for every ``.npy`` member of the samples, and "position",
    int64 (batch_size / world_size,). Iterating again starts again at ``position``.

    Args:
        batch_size: global.
        workers: processes that read whole batches; 0: a thread in this process. Never changes what is read.
        position: global samples consumed so far, as in a checkpoint's state.
        skip: [begin, end) ranges of positions that are jumped over (windows that a rollback gave up).
        pin_memory: batches in page-locked memory, for copying to CUDA.

    Raises UserError where the split is empty or the batch does not divide; while iterating RunFailed, where a worker
    died or no intact sample is left to stand in.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        workers: int = 0,
        position: int = 0,
        skip: Sequence[Sequence[int]] = (),
        pin_memory: bool = False,
    ) -> None:
        _require_samples(manifest, split)
        if batch_size % world_size:
            raise UserError(
                f"A global batch of {batch_size} samples cannot be shared equally by {world_size} processes."
            )
        positions = Positions(batch_size, rank, world_size, position, skip, None)
        in_thread = pin_memory and not workers  # a worker's batch is pinned by the process that receives it
        super().__init__(manifest, split, seed, positions, in_thread)
        self._workers, self._pin_memory = workers, pin_memory
        self._state = {"seed": seed, "manifest": manifest.identity, "split": split}
        self._running: Iterator[Item] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        endless = range(1 << 62)
        if self._workers:
            self._running = read_in_processes(self._reader, endless, self._workers, self._pin_memory)
        else:
            self._running = _read_ahead(self._reader.__getitem__, endless)
        for item in self._running:
            yield self._hand_out(item)

    def close(self) -> None:
        """End the workers or the thread; safe to call twice."""
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]  # a generator

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state_after(self, batches: int) -> dict[str, Any]:
        """What a checkpoint keeps once ``batches`` batches of this loader have been trained on: equal on all ranks."""
        return {
            "position": self._positions.after(batches),
            **self._state,
            "skip": [list(s) for s in self._positions.skip],
        }

    def check(self, state: dict[str, Any]) -> None:
        """UserError where ``state`` belongs to other data or to another seed."""
        for name, mine in self._state.items():
            if state[name] != mine:
                raise UserError(f"The checkpoint was trained with {name} {state[name]}, this run has {name} {mine}.")

    def sample(self, position: int) -> dict[str, Any]:
        """The sample at ``position`` decoded, with its JSON and "__key__"; a stand-in where it is damaged."""
        (number,) = self._order.ids(np.array([position])).tolist()
        samples = SplitReader(self._reader.samples.manifest, self._reader.samples.split)
        try:
            return self._reader.replacing(number, samples.sample)[0]
        finally:
            samples.close()


class Evaluation(_Batches):
    """One pass over a split in a fixed order, each sample exactly once over all ranks; may be iterated again.

    ``position`` of a batch counts from 0 in each pass. In the last batch the ranks' counts may differ, and a rank
    with none gets no batch: weight by the true counts and reduce at the end.

    Args:
        batch_size: global; need not divide.
        limit: at most so many global batches, the same samples on every world size.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        _require_samples(manifest, split)
        total = manifest.samples(split)
        if limit is not None:
            total = min(total, limit * batch_size)
        super().__init__(
            manifest, split, EVALUATION_SEED, Positions(batch_size, rank, world_size, 0, (), total), pin_memory
        )
        self.samples = total
        self._batches = -(-total // batch_size)

    def __len__(self) -> int:
        """Global batches in a pass."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        mine = (n for n in range(len(self)) if len(self._positions.of_batch(n)))
        for item in _read_ahead(self._reader.__getitem__, mine):
            yield self._hand_out(item)


def _require_samples(manifest: Manifest, split: str) -> None:
    if not manifest.samples(split):
        have = ", ".join(sorted({shard.split for shard in manifest.shards if shard.samples})) or "none"
        raise UserError(f"{manifest.folder} holds no samples of the split '{split}'; it has: {have}.")


def _read_ahead(read: Callable[[int], Item], numbers: Iterable[int]) -> Iterator[Item]:
    """``read(n)`` for each number in turn, ``AHEAD`` of them in advance in a thread."""
    waiting: deque[Future[Item]] = deque()
    thread = ThreadPoolExecutor(1, "loader")
    try:
        for number in numbers:
            waiting.append(thread.submit(read, number))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
