"""How long a training waits for a checkpoint, and how long until the disk has it: ours against what one would pick instead.

    python -m benchmarks.checkpoint [--megabytes 200] [--repeats 5] [--step 1] [--folder DIR]

One process holds weights, Adam's two moments and averages, together four times ``--megabytes``. All contenders end with the bytes on
the disk (fsync). They take turns, so that what else happens on the machine happens to all of them.

- torch.save: the loop waits for all of it; no hash, no manifest.
- torch.distributed.checkpoint.async_save: the loop waits for a copy in main memory.
- ours, waiting: written, hashed and renamed while the loop waits (as the last one of a run).
- ours, beside: as the training loop does it, before a step of no length, and before one that computes for ``--step`` seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import Row, amount, hand_over, ratios
from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.saving import Saver

PARTS = ("weights", "exp_avg", "exp_avg_sq", "ema")
TENSORS = 40  # a part


def make_state(megabytes: int) -> dict[str, dict[str, Tensor]]:
    size = megabytes * 1_000_000 // 4 // TENSORS
    return {part: {f"layer{i}": torch.randn(size) for i in range(TENSORS)} for part in PARTS}


def torch_save(state: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Seconds that the loop waits, and seconds until the disk has it."""
    began = time.perf_counter()
    with (folder / "whole.pt").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    return took, took


def torch_async(state: dict[str, Any], folder: Path) -> tuple[float, float]:
    began = time.perf_counter()
    writing: Any = dcp.async_save(state, checkpoint_id=folder / "dcp")
    waited = time.perf_counter() - began
    writing.result()
    return waited, time.perf_counter() - began


def ours_waiting(state: dict[str, Any], folder: Path) -> tuple[float, float]:
    began = time.perf_counter()
    checkpoint.save(folder, Checkpoint(1, state, {}))
    took = time.perf_counter() - began
    return took, took


def compute(seconds: float) -> None:
    a, end = torch.randn(256, 256), time.perf_counter() + seconds
    while time.perf_counter() < end:
        a @ a


class OursBeside:
    """Keeps its memory between saves, as in a training; ``step``: seconds that the next step computes."""

    def __init__(self, folder: Path, step: float) -> None:
        self.saver, self.step = Saver(folder, None), step

    def __call__(self, state: dict[str, Any], folder: Path) -> tuple[float, float]:
        self.saver.folder = folder
        began = time.perf_counter()
        self.saver.beside(Checkpoint(1, state, {}))
        waited = time.perf_counter() - began
        compute(self.step)
        copied = time.perf_counter()
        self.saver.hold_still()
        waited += time.perf_counter() - copied
        saved = self.saver.outcome(wait=True)
        assert saved is not None and saved.failure is None
        return waited, saved.seconds


def compare(megabytes: int, repeats: int, step: float, base: Path) -> dict[str, list[tuple[float, float]]]:
    state = make_state(megabytes)
    contenders: dict[str, Callable[[dict[str, Any], Path], tuple[float, float]]] = {
        "torch.save": torch_save,
        "torch.distributed.checkpoint": torch_async,
        "ours, waiting": ours_waiting,
        "ours, beside no step": OursBeside(base, 0.0),
        f"ours, beside a step of {step:g} s": OursBeside(base, step),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            folder = base / "one"
            folder.mkdir()
            measured = contender(state, folder)
            shutil.rmtree(folder)
            if turn:  # the first one finds no memory to use again
                times[name].append(measured)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="of weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", type=float, default=1.0, help="seconds")
    parser.add_argument("--folder", type=Path, help="where it is written for the while (default: the system's)")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir=args.folder) as base:
        times = compare(args.megabytes, args.repeats, args.step, Path(base))
    dist.destroy_process_group()
    table = Table(title=f"a checkpoint of {4 * args.megabytes} MB, median of {args.repeats} (smallest..largest)")
    for column in ("", "the loop waits, s", "until the disk has it, s", "waits, share of it"):
        table.add_column(column, justify="left" if not column else "right")
    for name, pairs in times.items():
        shares = [waited / took for waited, took in pairs]
        table.add_row(name, *(shown(list(v)) for v in zip(*pairs, strict=True)), shown(shares, percent=True))
    Console(width=120).print(table)
    hand_over("checkpoint", compared(times))


def compared(times: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """What is handed over: what the loop waits, beside torch's own two ways, and as a share of the writing."""
    (mine, pairs), waited = list(times.items())[-1], {name: [w for w, _ in pairs] for name, pairs in times.items()}
    told = {name: f"{name}: {amount(seconds, 's')}" for name, seconds in waited.items()}
    rows = [
        Row(
            "what the loop waits for a checkpoint",
            told[mine],
            told[name],
            ratios(waited[mine], waited[name]),
            at_most=1,
        )
        for name in ("torch.save", "torch.distributed.checkpoint")
    ]
    written = f"until the disk has it: {amount([took for _, took in pairs], 's')}"
    return [
        *rows,
        Row("the same, of its write time", told[mine], written, [w / t for w, t in pairs], "%", at_most=0.05),
    ]


def shown(values: list[float], *, percent: bool = False) -> str:
    form = "{:.1%}" if percent else "{:.2f}"
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return f"{middle} ({low}..{high})"


if __name__ == "__main__":
    main()
