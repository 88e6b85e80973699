"""A recipe that reads small text files and needs no torch: the engine's promises at a few milliseconds a shard.

It can be told, by the environment, to be slow (LIGHT_SLEEP, seconds an input) so that kills hit it at work. ``crash_at`` makes this
very process die by SIGKILL before or after its n-th durable step, whatever that step is.
"""

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep.stage import BadInput, Input, InputFile, Samples, Stage

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LightStage(Stage):
    rows: int = 40
    dataset: ClassVar[str] = "light"
    code: ClassVar[tuple[str, ...]] = ("data_prep.shards:ShardWriter",)

    def scan(self, source: Path) -> list[Input]:
        return [
            Input(path.stem, split, path.stem.split("=")[0], (InputFile(path.relative_to(source).as_posix()),))
            for split in SPLITS
            for path in sorted((source / split).glob("*.txt"))
        ]

    def licence(self, source: Path) -> str:
        return "None: numbers."

    def load(self, item: Input, read: Callable[[str], bytes]) -> tuple[str, int]:
        time.sleep(float(os.environ.get("LIGHT_SLEEP", 0)))
        try:
            return item.name, int(read(item.files[0].path))
        except ValueError:
            raise BadInput("not a number") from None

    def assemble(self, loaded: Sequence[tuple[str, int]]) -> tuple[Samples, dict[str, Any]]:
        samples: Samples = []
        for name, number in loaded:
            values = np.random.default_rng(number).standard_normal((self.rows, 100)).astype(np.float32)
            samples += [(f"{name}-{i}", {"values": row, "meta": {"number": number}}) for i, row in enumerate(values)]
        return samples, {"total": sum(number for _, number in loaded)}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        return {"total": sum(s["total"] for s in summaries["train"]), "samples": samples}

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        return "Numbers."


@dataclass(frozen=True)
class ThreadsStage(LightStage):
    """Its summary tells how many threads the libraries of its process were given."""

    def assemble(self, loaded: Sequence[tuple[str, int]]) -> tuple[Samples, dict[str, Any]]:
        samples, summary = super().assemble(loaded)
        return samples, summary | {"threads": os.environ.get("OMP_NUM_THREADS", "")}


def write_source(folder: Path, count: int = 18) -> Path:
    """``count`` inputs, two thirds of them for training."""
    for i in range(count):
        split = ("train", "train", "train", "train", "valid", "test")[i % 6]
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / f"n{i:03d}.txt").write_text(str(1000 + i))
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file's sha256, hidden ones included."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


class Steps:
    """Counts this process' durable steps (fsync, rename, unlink) and dies by SIGKILL at the ``at``-th: "before", "during" or "after" it."""

    def __init__(self, at: int | None = None, when: str = "before") -> None:
        self.count, self.at, self.when = 0, at, when
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                match self.when:
                    case "before":
                        die()
                    case "during":  # the step lets other threads run while the kernel is at it
                        threading.Thread(target=die, args=[random.uniform(0, 1e-4)]).start()
            try:
                return step(*args, **options)
            finally:
                if self.count == self.at:
                    die()

        return counted


def die(after: float = 0.0) -> None:
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int, timeout: float = 60) -> int:
    """A forked process' exit code once it has ended; a signal's number negated. One that does not end is killed, and fails the test."""
    deadline = time.monotonic() + timeout
    while (status := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} did not end in {timeout} s")
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(status[1])
