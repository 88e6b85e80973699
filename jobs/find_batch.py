"""How many samples a process can hold at once, and how many are fastest. ``launch.py NAME --find-batch``.

Tried, and not computed: for each size a process of its own trains three real steps on an example batch, in the config's precision, and
tells its peak memory and the time of a step. So a size that does not fit ends its process and nothing else. From the largest size that
fits on, the same is tried with activations computed again. What is printed goes into ``--set trainer.micro_batch=`` and
``--set trainer.activation_checkpointing=true``: the run, its batches and its results stay the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.configs import ROOT, parse_tree
from pipeline.config import RunConfig
from pipeline.errors import RunFailed, run_command

if TYPE_CHECKING:
    import torch

STEPS = 3  # of a trial; the first pays for what is made at the first use
SPARE = 0.9  # of the memory may be used: what is fragmented or another process's is not there
NO_ROOM = re.compile("can't allocate memory|out of memory|ALLOC_FAILED")
NOT_ENOUGH = 75  # exit status of a trial whose size does not fit


@dataclass(frozen=True)
class Trial:
    """``peak``: bytes of the device, or on a CPU of the process; ``limit``: how many it has; ``seconds`` a step."""

    size: int
    peak: int
    limit: int
    seconds: float
    device: str

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.size / self.seconds


# -- in this process: no torch ---------------------------------------------------------------------------------------


def find(config: RunConfig, folder: Path | None, processes: int, least: int = 1) -> list[Trial]:
    """Trials of 1, 2, 4, ... samples from ``least`` up to a process's share of the batch or to what fits, told while they come. Where the
    system takes no batch that small, from its smallest one on.

    Raises RunFailed where not one size fits, or where a trial fails for another reason.
    """
    done: list[Trial] = []
    share = -(-config.data.batch_size // processes)
    for size in _sizes(share):
        if size < least or (done and size <= done[-1].size):
            continue  # the system takes no smaller batch than that
        if len(done) > 1 and (needed := _foreseen(done, size)) > SPARE * done[-1].limit:
            print(f"{size}: would need about {needed / 1e9:.1f} GB of {done[-1].limit / 1e9:.1f}", file=sys.stderr)
            break
        trial = _try(config, folder, size)
        if trial is None:
            print(f"{size}: does not fit", file=sys.stderr, flush=True)
            break
        done.append(trial)
        print(f"{trial.size}: {trial.peak / 1e9:.2f} GB, {trial.rate:.1f} samples/s", file=sys.stderr, flush=True)
    if not done:
        raise RunFailed(
            "not even the smallest batch fits; take a smaller model, bf16 (--set trainer.precision=bf16), activations computed again "
            "(--set trainer.activation_checkpointing=true), or ZeRO over more GPUs (--strategy deepspeed)."
        )
    return done


def find_sparing(config: RunConfig, folder: Path | None, processes: int, kept: list[Trial]) -> list[Trial]:
    """The same with activation checkpointing, from the largest of ``kept`` on; nothing where the config asks for it already, or (which is
    told) where it cannot be tried.
    """
    if config.trainer.activation_checkpointing:
        return []
    print("with activations computed again:", file=sys.stderr, flush=True)
    section = config.trainer.model_copy(update={"activation_checkpointing": True})
    try:
        return find(config.model_copy(update={"trainer": section}), folder, processes, kept[-1].size)
    except RunFailed as error:  # what was found without it stands
        print(f"warning: {error}", file=sys.stderr, flush=True)
        return []


def _sizes(share: int) -> Iterator[int]:
    size = 1
    while size < share:
        yield size
        size *= 2
    yield share


def _foreseen(done: list[Trial], size: int) -> float:
    """Bytes, going on along the last two trials."""
    before, last = done[-2:]
    return last.peak + (size - last.size) * max(0.0, (last.peak - before.peak) / (last.size - before.size))


def _try(config: RunConfig, folder: Path | None, size: int) -> Trial | None:
    """One trial in a process of its own; None where it does not fit."""
    tree = {"config": config.model_dump(mode="json"), "data": str(folder) if folder else None, "size": size}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.find_batch"], input=json.dumps(tree), capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode in (NOT_ENOUGH, -9):  # -9: the system's own end of a process that takes too much
        return None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunFailed(f"a step of {size} samples failed: {reason}")
    return Trial(**json.loads(done.stdout.splitlines()[-1]))


def show(config: RunConfig, folder: Path | None, processes: int) -> None:
    """Find and print it, for a person."""
    from rich.console import Console
    from rich.table import Table

    done = find(config, folder, processes)
    sparing = find_sparing(config, folder, processes, done)
    again = config.trainer.activation_checkpointing
    table = Table("samples at once", "peak memory", "of", "a step", "samples/s", "activations")
    for t, recomputed in [*((t, again) for t in done), *((t, True) for t in sparing)]:
        table.add_row(
            str(t.size), f"{t.peak / 1e9:.2f} GB", f"{t.limit / 1e9:.1f} GB", f"{t.seconds:.3f} s", f"{t.rate:.1f}",
            "computed again" if recomputed else "kept",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    share = -(-config.data.batch_size // processes)
    for sentence in advice(done, sparing, share):
        console.print(sentence)


def advice(done: list[Trial], sparing: list[Trial], share: int) -> Iterator[str]:
    """What the trials say, for a process whose share of the batch is ``share``."""
    fastest, largest = max(done, key=lambda t: t.rate), done[-1]
    yield f"{largest.device}: the largest tried that fits is {largest.size}, the fastest {fastest.size}."
    yield f"A process's share of the batch is {share}."
    if sparing:
        most, same = sparing[-1], sparing[0]
        yield (
            f"With --set trainer.activation_checkpointing=true {most.size} fit: {same.size} take {same.peak / 1e9:.2f} GB in place of "
            f"{largest.peak / 1e9:.2f}, at {same.rate / largest.rate:.2f} of the rate."
        )
    if fastest.size < share:
        yield f"--set trainer.micro_batch={fastest.size}"
    else:
        yield "The whole share fits and is fastest: trainer.micro_batch is not needed."


# -- in the trial's process ----------------------------------------------------------------------------------------


def trial(config: RunConfig, folder: Path | None, size: int) -> Trial:
    """Train ``STEPS`` steps on an example batch of ``size`` samples, or as many more as the system needs at least."""
    import torch

    from jobs.describe import build, example
    from pipeline.distributed import Agreement, make_fabric
    from pipeline.engine import to_device
    from pipeline.saving import Saver
    from pipeline.train_state import make_train_state
    from pipeline.world import World

    world = World()
    fabric = make_fabric(config.trainer, world)
    module = build(config, folder).train()
    batch, size = example(module, [size << i for i in range(8)])
    state = make_train_state(fabric, module, config, Agreement(world), Saver(Path("unused"), None))
    engine, optimizers = state.begin(None)
    batch = to_device(batch, fabric.device)
    times = []
    for step in range(1, STEPS + 1):
        began = time.perf_counter()
        module.optimize(engine, batch, optimizers, step)
        state.update_average(step)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak, limit, device = _memory(fabric.device)
    return Trial(size, peak, limit, min(times[1:]), device)


def _memory(device: torch.device) -> tuple[int, int, str]:
    import torch

    from pipeline.memory import held

    found = held(device)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device)
        return found["peak_reserved"], there.total_memory, there.name
    import psutil

    return found["peak"], found["resident"] + psutil.virtual_memory().available, "CPU"


def main() -> int:
    """``python -m jobs.find_batch``: config, data folder and size as JSON on stdin, the trial as JSON on stdout."""
    tree = json.load(sys.stdin)
    config = parse_tree(tree["config"], "config")
    import torch

    try:
        found = trial(config, Path(tree["data"]) if tree["data"] else None, tree["size"])
    except torch.OutOfMemoryError:
        return NOT_ENOUGH
    except RuntimeError as error:
        if NO_ROOM.search(str(error)):  # as a CPU says it, and as CUDA does of what torch's allocator does not hand out
            return NOT_ENOUGH
        raise
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    run_command(main)
