"""What a run takes of its node, for the ``system/`` metrics that MLflow's pages show apart: measured beside the training, never in it.

    metrics/system_003_n00.jsonl    as a journal: of the third attempt, on its first node

One process a node (``watched``), started by its first rank. Counted is the job's own: the processes below the one that started the
ranks, and the GPUs that they were given or run on. A line holds means over half a minute; its step is the training's at that moment.
Names and units are MLflow's; of several nodes the number stands in between (``system/1/gpu_0_...``).
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from monitoring.sidecar import beside, stand_back
from pipeline.gpus import Device, NoGpus, Reading, all_devices, find_device, load_library
from pipeline.journal import Journal
from pipeline.runs import RunFolder
from pipeline.world import World

EVERY = 5.0  # seconds between two looks
LINE = 30.0  # seconds that a line is the mean of
MEGABYTE = 1e6


class Host:
    """The processes below ``root``, itself included, while they live."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._total = psutil.virtual_memory().total
        self._before: dict[psutil.Process, float] = {}
        self._at = time.monotonic()
        self.look()  # processor time is told from look to look

    def look(self) -> dict[str, float]:
        """Processor time in percent of what the job may use; resident memory, in which shared pages count once a process."""
        spent, memory = {}, 0
        for process in self.processes():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    spent[process] = times.user + times.system
                    memory += process.memory_info().rss
            except psutil.Error:
                continue  # it has just ended
        now, at = spent, time.monotonic()
        used = sum(max(0.0, seconds - self._before.get(process, 0.0)) for process, seconds in now.items())
        share = used / max(at - self._at, 1e-3) / self._processors
        self._before, self._at = now, at
        return {
            "cpu_utilization_percentage": 100 * share,
            "system_memory_usage_megabytes": memory / MEGABYTE,
            "system_memory_usage_percentage": 100 * memory / self._total,
        }

    def processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._root)
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            return []


class Gpus:
    """The job's GPUs; none where nobody can be asked about them, which is told once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._library: Any = None
        try:
            self._library = load_library()
        except NoGpus as error:
            print(f"no system metrics of GPUs: {error}", file=sys.stderr)

    def look(self) -> dict[str, float]:
        """Load, memory and power of each, numbered as the job numbers them; a part of a GPU (MIG) tells no load and no power."""
        found = {}
        for number, gpu in enumerate(self._own()):
            for name, value in _facts(gpu.read()):
                found[f"gpu_{number}_{name}"] = value
        return found

    def _own(self) -> list[Device]:
        """Those that ``CUDA_VISIBLE_DEVICES`` names, as SLURM sets it; without it those on which a process of the job runs."""
        if self._library is None:
            return []
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        if given is not None:
            words = (word.strip() for word in given.split(","))
            return [gpu for word in words if (gpu := find_device(self._library, word)) is not None]
        pids = {process.pid for process in self._host.processes()}
        return [gpu for gpu in all_devices(self._library) if pids & gpu.pids()]


def _facts(told: Reading) -> Iterator[tuple[str, float]]:
    if told.memory is not None and told.total:
        yield "memory_usage_megabytes", told.memory / MEGABYTE
        yield "memory_usage_percentage", 100 * told.memory / told.total
    if told.use is not None:
        yield "utilization_percentage", 100 * told.use
    if told.power is not None:
        yield "power_usage_watts", told.power
        if told.limit:
            yield "power_usage_percentage", 100 * told.power / told.limit


class Means:
    """Of looks that were taken, the mean of each figure."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, look: dict[str, float]) -> None:
        for name, value in look.items():
            before, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (before + value, count + 1)

    def take(self) -> dict[str, float]:
        """The means, which begin anew."""
        sums, self._sums = self._sums, {}
        return {name: round(total / count, 3) for name, (total, count) in sums.items()}


def watch(run: RunFolder, journal: Journal, prefix: str, root: int) -> None:
    """Look until stdin is closed, which is when the training is gone."""
    host = Host(root)
    gpus = Gpus(host)
    means, next_line, closed = Means(), 0.0, False  # the first line at the first look: short runs have one, too
    while not closed:
        closed = bool(select.select([sys.stdin], [], [], EVERY)[0])
        if not closed:  # at the end the processes are gone already
            means.add({**host.look(), **gpus.look()})
        if closed or time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE
            figures = {f"{prefix}{name}": value for name, value in means.take().items()}
            step = (run.heartbeat() or {}).get("step", 0)
            if figures:
                journal.log(step, figures)


@contextmanager
def watched(run: RunFolder, world: World) -> Iterator[None]:
    """Within the block a process a node measures what the run takes of it; started by the node's first rank."""
    if world.local_rank:
        yield
        return
    words = ["monitoring.system", str(run.path), "--node", str(world.node), "--nodes", str(world.nodes)]
    with beside([*words, "--root", str(os.getppid())], run.logs / f"system_{world.node}.log"):
        yield


def system_file(run: RunFolder, attempt: int, node: int) -> Path:
    return run.metrics / f"system_{attempt:03d}_n{node:02d}.jsonl"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m monitoring.system", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--root", type=int, required=True, help="the process that started the ranks of this node")
    parser.add_argument("--node", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1)
    args = parser.parse_args(words)
    stand_back()
    run = RunFolder(Path(args.run))
    attempt = run.newest_attempt()
    journal = Journal(system_file(run, attempt, args.node), attempt, 0)
    watch(run, journal, f"system/{args.node}/" if args.nodes > 1 else "system/", args.root)
    journal.close()


if __name__ == "__main__":
    main()
