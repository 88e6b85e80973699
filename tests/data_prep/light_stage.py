"""A recipe that reads small text files and needs no torch: the engine's promises at a few milliseconds a shard.

It can be told, by the environment, to be slow (LIGHT_SLEEP, seconds an input) so that kills hit it at work. ``crash_at`` makes this
very process die by SIGKILL before or after its n-th durable step, whatever that step is.
"""

import os
import signal
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


def write_source(folder: Path, count: int = 18) -> Path:
    """``count`` inputs, two thirds of them for training."""
    for i in range(count):
        split = ("train", "train", "train", "train", "valid", "test")[i % 6]
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / f"n{i:03d}.txt").write_text(str(1000 + i))
    return folder


class Steps:
    """Counts this process' durable steps (fsync, rename, unlink) and, at the ``at``-th, dies before or after it."""

    def __init__(self, at: int | None = None, after: bool = False) -> None:
        self.count, self.at, self.after = 0, at, after
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return step(*args, **options)
            finally:
                if self.count == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted
