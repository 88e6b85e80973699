"""What the training loop itself costs a step: four weights trained bare, by our loop, and by Lightning's Trainer, in one run.

    python -m benchmarks.trainer [--steps 3000] [--repeats 5] [--clock cpu]

Everything is on: loss and gradient norm journalled at every step, EMA, clipping, schedule, heartbeat, progress, watchdog. The bare loop
does the same arithmetic: forward, backward, clip, one fused optimizer step. It has its batch in memory, so the loop's own cost is
taken with a batch in memory too; one row reads real shards, whose reader shares the interpreter's lock with a step of no length.
Lightning's Trainer does the arithmetic and logs its loss at every step to a CSV file; it keeps no average, watches nothing, and saves
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measure import CLOCKS
from benchmarks.rows import Row, amount, hand_over
from data_prep.shards import ShardWriter, commit
from pipeline.attempt import Attempt
from pipeline.config import ModelSection, RunConfig, parse_config
from pipeline.control import StopFlag
from pipeline.distributed import make_fabric
from pipeline.manifest import FORMAT, MANIFEST, Manifest, read_manifest, sealed
from pipeline.runs import RunFolder
from pipeline.train_module import Batch, TrainModule
from pipeline.trainer import Trainer
from pipeline.world import World

BATCH = 8
clock = CLOCKS["wall"]


class FourWeights(TrainModule):
    """As little as can be trained: what is measured beside it is the loop."""

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        self.weight = nn.Parameter(torch.ones(4))

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": (batch["x"] * self.weight).square().mean()}


class NoStep(FourWeights):
    """Does nothing at all in a step: the loop alone, without Fabric's wrappers."""

    def optimize(self, engine: Any, batch: Batch, optimizers: Any, step: int) -> dict[str, Tensor]:
        return {"loss": batch["x"][0, 0]}


class InMemory(Trainer):
    """The same loop over one batch that is there already."""

    def _loader(self) -> Any:
        return Repeated(super()._loader())


class Unwatched(InMemory):
    """And nobody looks: no journal, heartbeat, watchdog, progress, pace or look at the loss. The difference is what monitoring costs."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        assert self.reporter is not None
        blind: Any = lambda *_, **__: None  # noqa: E731
        self._look = self.watchdog.stepped = self.pulse.stepped = blind  # type: ignore[method-assign]
        self.reporter.step_done = self.reporter.log = blind  # type: ignore[method-assign]
        self.heartbeat.beating = contextlib.nullcontext  # type: ignore[assignment, method-assign]
        self.watchdog.watching = lambda step: contextlib.nullcontext()  # type: ignore[assignment, method-assign, return-value]


class Repeated:
    """A loader's first batch again and again; its state is the loader's own."""

    def __init__(self, loader: Any) -> None:
        self._batch = next(iter(loader))
        loader.close()
        self.state_after, self.faults, self.close = loader.state_after, loader.faults, loader.close

    def __iter__(self) -> Any:
        return itertools.repeat(self._batch)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_shards(folder: Path, samples: int = 4096) -> Manifest:
    with ShardWriter(folder, "writing") as writer:
        for number in range(samples):
            writer.add(f"{number:06d}", {"x": np.full(4, number / samples, np.float32)})
        written = writer.finish()
        commit(writer, folder, "train-000000")
    line = {"name": "train-000000", "split": "train", "samples": written.samples, "tar_size": written.tar_size}
    line |= {"tar_hash": written.tar_hash, "index_hash": written.index_hash}
    tree = {"format": FORMAT, "dataset": "toy", "recipe": "toy", "codec": None, "info": {}, "shards": [line]}
    (folder / MANIFEST).write_bytes(sealed(tree))
    return read_manifest(folder)


def config_of(steps: int) -> RunConfig:
    tree = {
        "model": {"system": "toy"},
        "data": {"recipe": "toy", "batch_size": BATCH},
        "optimizer": {"lr": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 10, "decay_steps": steps}},
        "trainer": {"max_steps": steps, "log_every": 1, "save_every": 10**9, "ema": 0.999, "grad_clip": 1.0},
    }
    return parse_config(tree, ModelSection, "benchmark")


def ours(module_class: type[TrainModule], manifest: Manifest, steps: int, trainer: type[Trainer] = InMemory) -> float:
    """Seconds a step in the steady state: two lengths, so that starting and the last checkpoint cancel."""
    short = steps // 4
    return (timed(module_class, manifest, steps, trainer) - timed(module_class, manifest, short, trainer)) / (
        steps - short
    )


def timed(module_class: type[TrainModule], manifest: Manifest, steps: int, kind: type[Trainer]) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        run = RunFolder(Path(folder) / "toy" / "00000000")
        run.create()
        config, world = config_of(steps), World()
        module = module_class(config, {})
        fabric = make_fabric(config.trainer, world)
        trainer = kind(run, config, module, manifest, fabric, world, Attempt(run.claim_attempt(), StopFlag()))
        began = clock()
        trainer.fit()
        return clock() - began


def bare(steps: int) -> float:
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, fused=True)
    x = torch.rand(BATCH, 4)
    began = clock()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = (x * weight).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_([weight], 1.0, foreach=True)
        optimizer.step()
    return (clock() - began) / steps


def lightnings(steps: int) -> float:
    """Seconds a step of Lightning's Trainer, in the steady state."""
    short = steps // 4
    return (lightning_seconds(steps) - lightning_seconds(short)) / (steps - short)


def lightning_seconds(steps: int) -> float:
    import lightning.pytorch as pl  # late: it imports much
    from lightning.pytorch.loggers import CSVLogger

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def training_step(self, batch: Tensor, number: int) -> Tensor:
            loss = (batch * self.weight).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, gradient_clip_val=1.0, log_every_n_steps=1, logger=CSVLogger(folder),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        began = clock()
        trainer.fit(Module(), itertools.repeat(torch.rand(BATCH, 4)))
        return clock() - began


def compared(rows: dict[str, list[float]]) -> list[Row]:
    """What is handed over: what a step costs beyond the bare loop's."""
    bare_loop, mine, lightning = (rows[name] for name in ("bare loop", "our loop", "Lightning's Trainer"))
    cost, theirs = ([a - b for a, b in zip(loop, bare_loop, strict=True)] for loop in (mine, lightning))
    step, beside = f"a step: {amount(mine, 's')}", f"bare PyTorch loop: {amount(bare_loop, 's')}"
    both = f"Lightning's Trainer over it: {amount(theirs, 's')}"
    times = [a / b for a, b in zip(cost, theirs, strict=True)]
    watching = rows["all monitoring, everything journalled"]
    return [
        Row("what the loop costs a step, everything on", step, beside, cost, "s", at_most=300e-6),
        Row("that cost, beside Lightning's", f"ours: {amount(cost, 's')}", both, times),
        Row("of it monitoring, journalled at every step", step, "the same loop, unwatched", watching, "s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of this process alone, where others work here"
    )
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    torch.set_num_threads(1)
    rows: dict[str, list[float]] = {
        "bare loop": [],
        "our loop": [],
        "our loop, no step": [],
        "our loop, no step, unwatched": [],
        "our loop, reading shards": [],
        "Lightning's Trainer": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_shards(Path(folder))
        for _ in range(args.repeats):  # interleaved, so that a busy moment of the machine hits all of them
            rows["bare loop"].append(bare(args.steps))
            rows["our loop"].append(ours(FourWeights, manifest, args.steps))
            rows["our loop, no step"].append(ours(NoStep, manifest, args.steps))
            rows["our loop, no step, unwatched"].append(ours(NoStep, manifest, args.steps, Unwatched))
            rows["our loop, reading shards"].append(ours(FourWeights, manifest, args.steps, Trainer))
            rows["Lightning's Trainer"].append(lightnings(args.steps))
    rows["the loop's own cost"] = [a - b for a, b in zip(rows["our loop"], rows["bare loop"], strict=True)]
    watched = zip(rows["our loop, no step"], rows["our loop, no step, unwatched"], strict=True)
    rows["all monitoring, everything journalled"] = [a - b for a, b in watched]
    table = Table(
        "",
        "us a step (median)",
        "least .. most",
        title=f"{args.steps} steps, {args.repeats} repeats, {args.clock} time",
    )
    for name, values in rows.items():
        shown = [1e6 * v for v in values]
        table.add_row(name, f"{statistics.median(shown):.0f}", f"{min(shown):.0f} .. {max(shown):.0f}")
    Console().print(table)
    hand_over("trainer", compared(rows))


if __name__ == "__main__":
    main()
