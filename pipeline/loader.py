"""Shards to batches, exactly: which samples a step trains on depends on (data, seed, position) and on nothing else.

Step t of a run takes the next ``batch_size`` positions p, rank r its contiguous share of them, and ``order`` says which
sample stands at p. So the global sequence is the same for every world size and number of workers; batches straddle
epochs; and the only state is the p of the last *trained* step, whatever has been read ahead.

A damaged sample is replaced by another (a function of the damaged one alone), counted and named; see ``faults``.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from pipeline.batches import Batch, BatchReader, Damage, Item, Memory, Positions, Report, to_arrays
from pipeline.errors import RunFailed, UserError
from pipeline.manifest import Manifest
from pipeline.order import Order, block_size
from pipeline.rng import key
from pipeline.workers import Workers, read_ahead

LARGE = 256 << 10  # bytes of a sample
EVALUATION_SEED = 0  # evaluation has one order for ever, and a limited one must not see the first shards only


class _Batches:
    """What training and evaluation share: one rank's stream of batches, and the account of what was damaged."""

    def __init__(self, manifest: Manifest, split: str, seed: int, positions: Positions, partner: bool) -> None:
        self.samples = manifest.samples(split)
        if not self.samples:
            have = ", ".join(sorted({shard.split for shard in manifest.shards if shard.samples})) or "none"
            raise UserError(f"{manifest.folder} holds no samples of the split '{split}'; it has: {have}.")
        self.substituted = 0  # rows handed out that hold a stand-in
        self._manifest, self._split, self._seed, self._positions = manifest, split, seed, positions
        self._partner = partner
        self._damage = Damage()
        self._named: set[str] = set()
        self._unreported: list[str] = []

    def faults(self) -> list[str]:
        """One sentence for each damaged sample or shard met on this rank since the last call; each is named once."""
        new, self._unreported = self._unreported, []
        return new

    @property
    def _bytes_each(self) -> float:
        """Of a sample, on average."""
        return sum(shard.tar_size for shard in self._manifest.split(self._split)) / self._manifest.samples(self._split)

    def _new_reader(self) -> BatchReader:
        count, block = self._manifest.samples(self._split), block_size(self._bytes_each)
        order = Order(count, self._seed, block)
        partners = Order(count, key(self._seed, "partners"), block) if self._partner else None
        return BatchReader(self._manifest, self._split, order, self._positions, partners)

    def _hand_out(self, number: int, batch: Batch, report: Report) -> Batch:
        if report.failure is not None:
            raise RunFailed(report.failure)
        self.substituted += len(report.faults)
        for what, sample, stand_in in report.faults:
            if what not in self._named:
                self._named.add(what)
                self._unreported.append(f"{what}: sample {stand_in} of the split stands in for {sample}")
        positions = self._positions.of_batch(number)
        self._damage.count(len(positions), report.faults)
        if much := self._damage.too_much():
            told = f"{much}, the last one: {report.faults[-1].what}" if report.faults else much
            raise RunFailed(
                f"{self._manifest.folder} is not fit to train on: {told}; prepare.py --verify says what is wrong, and prepare it again."
            )
        if (
            len(positions) < self._positions.rows
        ):  # else each would let the reading thread have the interpreter in between
            batch = {name: tensor[: len(positions)] for name, tensor in batch.items()}
        return {**batch, "position": torch.from_numpy(positions)}


class Loader(_Batches):
    """This rank's batches of a training run, for ever.

    A batch holds one tensor (batch_size / world_size, ...) for every ``.npy`` member of the samples, and "position",
    int64 (batch_size / world_size,). Iterating again starts again at ``position``.

    Args:
        batch_size: global.
        workers: processes that read whole batches; 0: a thread in this process. Never changes what is read.
        position: global samples consumed so far, as in a checkpoint's state.
        skip: [begin, end) ranges of positions that are jumped over (windows that a rollback gave up).
        partner: with every sample another one as "other_...", at each position a function of (seed, position) as the sample is.
        pin_memory: batches in page-locked memory, for copying to CUDA.

    Raises UserError where the split is empty or the batch does not divide; while iterating RunFailed, where a worker
    died, no intact sample is left to stand in, or more than 1 % of what is read are stand-ins.
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
        partner: bool = False,
        pin_memory: bool = False,
    ) -> None:
        if batch_size % world_size:
            raise UserError(
                f"A global batch of {batch_size} samples cannot be shared equally by {world_size} processes."
            )
        super().__init__(manifest, split, seed, Positions(batch_size, rank, world_size, position, skip, None), partner)
        self._state = {"seed": seed, "manifest": manifest.identity, "split": split}
        self._count, self._pin_memory = workers, pin_memory
        self._stream: Generator[Item, None, None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        self._stream = self._in_processes() if self._count else self._in_thread()
        for number, item in enumerate(self._stream):
            yield self._hand_out(number, *item)

    def _in_thread(self) -> Generator[Item, None, None]:
        """In one thread, or two where samples are so large that reading and checking them leaves Python aside."""
        threads = 2 if self._bytes_each >= LARGE else 1
        with ExitStack() as stack:
            idle: SimpleQueue[BatchReader] = SimpleQueue()  # a reader serves one thread at a time
            for _ in range(threads):
                reader = stack.enter_context(closing(self._new_reader()))
                idle.put(reader)
            memory = Memory(reader.signature, self._positions.rows, self._pin_memory)
            yield from read_ahead(partial(_read_by_any, idle, memory), itertools.count(), threads)

    def _in_processes(self) -> Generator[Item, None, None]:
        with closing(self._new_reader()) as reader:
            signature = reader.signature
            workers = Workers(reader, Memory(signature, self._positions.rows), self._count)
        with closing(workers):
            if self._pin_memory:
                memory = Memory(signature, self._positions.rows, pin=True)
                yield from read_ahead(lambda _: _moved(*workers.next(), memory), itertools.count())
            while True:
                yield workers.next()

    def close(self) -> None:
        """End the workers or the thread; safe to call twice."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

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
        with closing(self._new_reader()) as reader:
            (number,) = reader.order.ids(np.array([position])).tolist()
            return reader.sample(number)


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
        partner: bool = False,
        pin_memory: bool = False,
    ) -> None:
        total = manifest.samples(split) if limit is None else min(manifest.samples(split), limit * batch_size)
        positions = Positions(batch_size, rank, world_size, 0, (), total)
        super().__init__(manifest, split, EVALUATION_SEED, positions, partner)
        self.samples = total
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        """Global batches in a pass."""
        return -(-self.samples // self._positions.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        mine = [number for number in range(len(self)) if len(self._positions.of_batch(number))]
        with closing(self._new_reader()) as reader:
            memory = Memory(reader.signature, self._positions.rows, self._pin_memory)
            with closing(read_ahead(partial(_read, reader, memory), mine)) as items:
                for number, item in zip(mine, items, strict=True):
                    yield self._hand_out(number, *item)


def _read(reader: BatchReader, memory: Memory, number: int) -> Item:
    batch = memory.take()
    return batch, reader.read(number, to_arrays(batch))


def _read_by_any(idle: SimpleQueue[BatchReader], memory: Memory, number: int) -> Item:
    reader = idle.get()
    try:
        return _read(reader, memory, number)
    finally:
        idle.put(reader)


def _moved(batch: Batch, report: Report, memory: Memory) -> Item:
    """The same in other memory."""
    moved = memory.take()
    for name, tensor in batch.items():
        moved[name].copy_(tensor)
    return moved, report
