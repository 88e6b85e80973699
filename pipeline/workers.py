"""Who reads batches while the trainer trains: a thread of its process, or processes of their own.

The processes are forked and fill memory that they share with the trainer, so no batch is pickled, copied or bound by
the size of /dev/shm. A pipe to each carries requests and reports; its end is how either side learns of the other's
death (a later worker inherits the trainer's ends of the earlier ones' pipes: they go one after the other, last first).
Signals meant for the trainer do not reach them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import signal
import struct
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

from pipeline.batches import BatchReader, Fault, Item, Memory, Report, to_tensors
from pipeline.errors import Unlucky

AHEAD = 2  # batches in advance: of the thread, or of each process
SPARE = 2  # batches of shared memory that the trainer may hold without a copy being made
REQUEST = struct.Struct("<qq")  # number of the batch, number of the block of memory
STOP = b"stop"  # the end of the pipe would do, were it not that later forks of the trainer may hold it open

T = TypeVar("T")


def read_ahead(read: Callable[[int], T], numbers: Iterable[int], threads: int = 1) -> Generator[T, None, None]:
    """``read(n)`` for each number, handed out in turn, ``AHEAD`` of them in advance, in ``threads`` threads (at most ``AHEAD`` work)."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, "loader")
    try:
        for number in numbers:
            waiting.append(pool.submit(read, number))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Worker(NamedTuple):
    pid: int
    pipe: Connection


class Workers:
    """``count`` processes; batch n is read by number n % count of them.

    Raises RunFailed where no sample is intact, and from ``next`` Unlucky where a process has died.
    """

    def __init__(self, reader: BatchReader, memory: Memory, count: int) -> None:
        self._memory = memory
        blocks = count * AHEAD + SPARE
        # Not named, so nothing is left behind; shared, since made before the fork.
        self._shared = memoryview(mmap.mmap(-1, max(1, blocks * memory.size)))
        self._free = list(range(blocks))
        self._asked: deque[int] = deque()  # the block of each batch that was asked for and not yet handed out
        self._next = 0  # number of the next batch to ask for
        self._workers: list[Worker] = []
        for _ in range(count):
            self._workers.append(self._fork(reader))
        for _ in range(count * AHEAD):
            self._ask()

    def next(self) -> Item:
        """The next batch, in order."""
        worker = self._workers[(self._next - len(self._asked)) % len(self._workers)]
        try:
            faults, failure = json.loads(worker.pipe.recv_bytes())
            block = self._asked.popleft()
            arrays = self._memory.arrays(self._block(block), lambda: self._free.append(block))
            if not self._free:  # the trainer holds on to batches: this one moves to memory of its own
                arrays = {name: array.copy() for name, array in arrays.items()}
            self._ask()
        except (EOFError, OSError) as error:
            raise Unlucky(self._obituary(worker)) from error
        return to_tensors(arrays), Report([Fault(*fault) for fault in faults], failure)

    def close(self) -> None:
        """End the processes and wait for them; each finishes the batch it is reading."""
        workers, self._workers = self._workers, []
        for worker in workers:
            with contextlib.suppress(OSError):  # it has died
                worker.pipe.send_bytes(STOP)
            worker.pipe.close()
        for worker in workers:
            _wait(worker.pid)

    def _ask(self) -> None:
        block = self._free.pop()
        self._asked.append(block)
        self._workers[self._next % len(self._workers)].pipe.send_bytes(REQUEST.pack(self._next, block))
        self._next += 1

    def _block(self, number: int) -> memoryview:
        return self._shared[number * self._memory.size : (number + 1) * self._memory.size]

    def _fork(self, reader: BatchReader) -> Worker:
        mine, theirs = Pipe()
        pid = os.fork()
        if pid:
            theirs.close()
            return Worker(pid, mine)
        code = 1
        try:
            mine.close()
            self._serve(reader, theirs)
            code = 0
        except BaseException:  # noqa: BLE001 - it ends here, and only the trainer's copy of the stack is above
            traceback.print_exc()
        finally:
            os._exit(code)  # nothing of the trainer's is to be tidied up by its copy

    def _serve(self, reader: BatchReader, pipe: Connection) -> None:
        gc.freeze()  # what came with the fork stays shared
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # SLURM signals a job's every process; the trainer ends this one
        try:
            while (request := pipe.recv_bytes()) != STOP:
                number, block = REQUEST.unpack(request)
                report = reader.read(number, self._memory.arrays(self._block(block)))
                pipe.send_bytes(json.dumps(report).encode())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the trainer closed the pipe, or is gone

    def _obituary(self, worker: Worker) -> str:
        code = _wait(worker.pid)
        self._workers.remove(worker)
        how = "has died" if code is None else f"left with code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (mostly for want of memory; fewer data.workers or a smaller data.batch_size need less)"
        return f"Loader worker {worker.pid} {how}; the same command goes on from the last checkpoint."


def _wait(pid: int) -> int | None:
    """The exit code of a child that is about to end, a signal's number negated; None where somebody else took it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None
