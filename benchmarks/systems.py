"""What a training step of each system costs beside plain eager PyTorch of the same network, and what share of the machine it uses.

    python -m benchmarks.systems [NAME ...] [--full] [--rounds 9] [--clock cpu] [--profile]

Ours: ``TrainModule.optimize`` through the loop's engine (Fabric, the config's optimizer, clipping). Plain: the same module and batch in a
bare loop: forward, backward, clip, step, with torch's optimizer as it comes. A GAN's order of steps is its own in both. They take turns, a
step each, in one process and one thread, so a busy moment hits both; a ratio compares two steps that follow one another.

Counted are matrix products, convolutions and attention (``pipeline/arithmetic.py``); a network that computes by transforms or element by
element has a small share by construction, and the profile (``--profile``) says where its time goes. MFU is the share of the rate of a large
product, which takes its turn in every round. ``--full``: the recipes' networks at the smallest batch that they take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.apart import lines_of
from benchmarks.rows import Row, amount, hand_over, ratios
from jobs.configs import load_named
from jobs.describe import BATCHES, build, example
from pipeline import rng
from pipeline.arithmetic import Count
from pipeline.config import OptimizerChoice, RunConfig
from pipeline.distributed import Agreement, make_fabric
from pipeline.engine import StillEngine, parameters_of
from pipeline.errors import UserError, run_command
from pipeline.saving import Saver
from pipeline.train_module import Batch, TrainModule
from pipeline.train_state import make_train_state
from pipeline.world import World

DEMOS = (
    "cd4mt_demo_edm",
    "cd4mt_demo",
    "cqtml_demo",
    "cqtml_demo_reward",
    "cqtml_demo_policy",
    "diff_mst_demo",
    "dismix_demo",
    "dismix_ldm_demo",
    "jingle_d_demo",
)
FULL = (
    "cd4mt", "cd4mt_medium", "cqtml", "cqtml_cnn", "cqtml_reward", "cqtml_policy", "diff_mst", "diff_mst_vocal", "dismix_simple", "dismix",
    "jingle_d",
)  # fmt: skip
WIDTH = 1024  # of the square matrices whose product is the measure
WARM = 2  # steps that pay for what is made at the first use
LONGEST = 240  # seconds for one network, its building included
COSTS = 8  # lines of a profile
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Measured:
    """Seconds of each round's step by us, plainly, and of a large product; ``flops`` of a step of ``batch`` samples."""

    ours: list[float]
    plain: list[float]
    product: list[float]
    batch: int
    flops: int

    @property
    def shares(self) -> list[float]:
        """Of the product's rate."""
        return [self.flops / (2 * WIDTH**3) * a for a in ratios(self.product, self.ours)]

    def row(self, name: str) -> Row:
        ours, theirs = amount(self.ours, "s"), f"plain eager PyTorch: {amount(self.plain, 's')}"
        return Row(f"a step of {name}", ours, theirs, ratios(self.ours, self.plain), at_most=1.0)

    def columns(self) -> list[str]:
        seconds = statistics.median(self.ours)
        low, middle, high = statistics.quantiles(ratios(self.ours, self.plain), n=4)
        return [
            str(self.batch),
            f"{1e3 * seconds:.1f}",
            f"{1e3 * statistics.median(self.plain):.1f}",
            f"{middle:.2f} ({low:.2f} .. {high:.2f})",
            f"{self.flops / 1e9:.1f}",
            f"{self.flops / seconds / 1e9:.1f}",
            f"{statistics.median(self.shares):.0%}",
        ]


class BareEngine(StillEngine):
    """What a GAN's ``optimize`` asks for, and nothing around it."""

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        norm = nn.utils.clip_grad_norm_(parameters_of(optimizer), max_norm or float("inf"))
        optimizer.step()
        return norm


def stock(optimizer: torch.optim.Optimizer, section: OptimizerChoice) -> torch.optim.Optimizer:
    """The same choice as torch makes it where nothing is asked for."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}[section.name]
    options = {"lr": section.lr, "betas": section.betas, "eps": section.eps, "weight_decay": section.weight_decay}
    return kind(parameters_of(optimizer), **options)  # type: ignore[arg-type]


def plain_step(config: RunConfig, batch_sizes: tuple[int, ...]) -> Callable[[int], None]:
    module, batch, _ = _made(config, batch_sizes)
    optimizers = {n: stock(o, config.optimizer_of(n)[0]) for n, o in module.configure_optimizers().items()}
    if len(optimizers) > 1:
        return lambda step: _drop(module.optimize(BareEngine(module), batch, optimizers, step))
    (optimizer,) = optimizers.values()
    parameters = parameters_of(optimizer)

    def step(number: int) -> None:
        optimizer.zero_grad()
        module.training_step(batch, number)["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, config.trainer.grad_clip or float("inf"))
        optimizer.step()

    return step


def our_step(config: RunConfig, batch_sizes: tuple[int, ...]) -> tuple[Callable[[int], None], int]:
    """A step as the loop makes it, and the samples in it."""
    module, batch, size = _made(config, batch_sizes)
    world = World()
    fabric = make_fabric(config.trainer, world)
    state = make_train_state(fabric, module, config, Agreement(world), Saver(Path("unused"), None))
    engine, optimizers = state.begin(None)
    return lambda step: _drop(module.optimize(engine, batch, optimizers, step)), size


def _made(config: RunConfig, batch_sizes: tuple[int, ...]) -> tuple[TrainModule, Batch, int]:
    torch.manual_seed(rng.key(config.seed, "initial weights"))
    module = build(config, None).train()
    return module, *example(module, batch_sizes)


def _drop(_: object) -> None:
    """A step's scalars are not looked at."""


def measure(config: RunConfig, batch_sizes: tuple[int, ...], rounds: int, clock: Callable[[], float]) -> Measured:
    ours, size = our_step(config, batch_sizes)
    plain = plain_step(config, batch_sizes)
    with Count() as count:
        ours(1)
    plain(1)
    matrix = torch.rand(WIDTH, WIDTH)

    def product(_: int) -> None:
        torch.mm(matrix, matrix)

    seconds: dict[Callable[[int], None], list[float]] = {ours: [], plain: [], product: []}
    for number in range(WARM + rounds):
        order = (ours, product, plain) if number % 2 else (plain, product, ours)
        for step in order:
            began = clock()
            step(number + 2)
            seconds[step].append(clock() - began)
    return Measured(*(seconds[of][WARM:] for of in (ours, plain, product)), size, count.flops)


def show_profile(config: RunConfig, batch_sizes: tuple[int, ...], title: str) -> None:
    """The operations that a step spends most time in itself."""
    step, _ = our_step(config, batch_sizes)
    step(1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(2)
    costs = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in costs)
    table = Table("operation", "of the step", "calls", title=title)
    for e in costs[:COSTS]:
        table.add_row(e.key, f"{e.self_cpu_time_total / total:.0%}", str(e.count))
    Console(width=120).print(table)


def one(name: str, args: argparse.Namespace) -> Measured:
    config = load_named(name, [*args.set, "trainer.precision='32'", "trainer.micro_batch=null"])
    sizes = BATCHES if args.full else (config.data.batch_size,)
    found = measure(config, sizes, args.rounds, CLOCKS[args.clock])
    if args.profile:
        show_profile(config, sizes, name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--full", action="store_true", help="the recipes' networks, at the smallest batch they take")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this process alone")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        print(json.dumps(asdict(one(args.names[0], args))))
        return
    columns = ("system", "batch", "step, ms", "plain, ms", "ours / plain", "GFLOP", "GFLOP/s", "MFU")
    table = Table(*columns, title=f"{args.rounds} rounds, quartiles, {args.clock} time, one thread")
    rows: list[Row] = []
    failed, options = False, [word for word in sys.argv[1:] if word not in args.names]
    for name in args.names or (FULL if args.full else DEMOS):
        found = apart(name, options)
        if isinstance(found, str):
            failed = True
            table.add_row(name, found)
            continue
        rows.append(found.row(name))
        table.add_row(name, *found.columns())
        print(name, *found.columns(), sep="\t", file=sys.stderr, flush=True)
    Console(width=130).print(table)
    hand_over("systems", rows)
    if failed:
        raise UserError(
            "not every system could be measured; the table says which; name the others to measure them alone."
        )


def apart(name: str, options: list[str]) -> Measured | str:
    """Measured in a process of its own, so that none finds another's memory; or what kept it from being measured."""
    said = lines_of("systems", [name, "--one", *options], LONGEST)
    if isinstance(said, str):
        return said
    *before, row = said
    for line in before:
        print(line)
    return Measured(**json.loads(row))


if __name__ == "__main__":
    run_command(main)
