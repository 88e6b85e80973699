"""What a training step of each system costs beside plain eager PyTorch of the same network, and what share of the machine it uses.

    python -m benchmarks.systems [NAME ...] [--all] [--rounds 21] [--clock cpu] [--profile]
    python -m benchmarks.systems --full [NAME ...] [--rounds 5] [--budget 60]

Ours: ``TrainModule.optimize`` through the loop's engine (Fabric, the config's optimizer, clipping). Plain: the same module and batch in a
bare loop: forward, backward, clip, step, with torch's optimizer as it comes. A GAN's order of steps is its own in both. They take turns, a
step each, in one process and one thread, so a busy moment hits both; a ratio compares two steps that follow one another.

What is asked is that ours is never slower. Were ours the very same program, chance alone would make its median slower half of the time.
So a second plain one, made as the first, takes its turn, too: the median of ours / plain (the geometric mean of both in that round) may
exceed one by the median distance between these two, which is measured and shown. An equal of theirs exceeds that in one of a hundred
runs (21 rounds of independent noise, simulated), and one slower by twice that distance hardly ever stays below. One demo of each system;
``--all``: all nine.

Counted are matrix products, convolutions and attention (``pipeline/arithmetic.py``); a network that computes by transforms or element by
element has a small share by construction, and the profile (``--profile``) says where its time goes. The last column is the share of the
rate of a large product on one thread, which takes its turn in every round. It may exceed 100 %: where torch's products are MKL's and the
processor AMD's, oneDNN's AVX-512 convolutions reach 1.7 times the product's rate (256 channels, 3 x 3).

``NAME --set trainer.compile=true``: ours compiled, beside plain ones that are not.

``--full``: our step of the recipes' networks at the smallest batch that they take, after one to warm up, for as many rounds as fit into
``--budget`` seconds, one at least. Operations are counted by the step's shapes (``jobs/shapes.py``). Rows are shown as
they come, and left for RESULTS.md, which is written anew. Needs a quiet machine, and 20 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import results
from benchmarks.__main__ import FULL_SIZE, write_results
from benchmarks.apart import lines_of
from benchmarks.measure import CLOCKS, Clock, in_turns, seconds
from benchmarks.rows import Grid, Row, amount, hand_over, ratios
from jobs.configs import load_named
from jobs.describe import BATCHES, build, example, shapes_only_if_large
from pipeline import rng
from pipeline.arithmetic import Count
from pipeline.compiling import as_it_is
from pipeline.config import OptimizerChoice, RunConfig
from pipeline.distributed import Agreement, make_fabric
from pipeline.engine import StillEngine, parameters_of
from pipeline.errors import UserError, run_command
from pipeline.saving import Saver
from pipeline.train_module import Batch, TrainModule
from pipeline.train_state import make_train_state
from pipeline.world import World

DEMOS = ("cd4mt_demo", "cqtml_demo", "diff_mst_demo", "dismix_demo", "jingle_d_demo")
MORE = ("cd4mt_demo_edm", "cqtml_demo_reward", "cqtml_demo_policy", "dismix_ldm_demo")
FULL = (
    "cd4mt", "cd4mt_medium", "cqtml", "cqtml_cnn", "cqtml_reward", "cqtml_policy", "diff_mst", "diff_mst_vocal", "dismix_simple", "dismix",
    "jingle_d",
)  # fmt: skip
SMALLEST = (1, *BATCHES)
WIDTH = 1024  # of the square matrices whose product is the measure
PRODUCTS = 20  # before a full-size step, the fastest counts: one of milliseconds says little of a step of a minute
WARM = 2  # rounds that pay for what is made at the first use
LONGEST = 240  # seconds for one demo, its building included
LONGEST_FULL = 3600  # for one full-size network
COSTS = 8  # lines of a profile
COLUMNS = (
    "system",
    "batch",
    "step, ms",
    "plain, ms",
    "ours / plain",
    "two plain ones",
    "GFLOP",
    "GFLOP/s",
    "of a product",
)
FULL_COLUMNS = (
    "system",
    "batch",
    "rounds",
    "step, s",
    "GFLOP a sample",
    "GFLOP a step",
    "GFLOP/s",
    "of a large product's rate",
)


@dataclass(frozen=True)
class Measured:
    """Seconds of each round's step by us and of a large product, and by two plain loops; ``flops`` of a step of ``batch`` samples."""

    ours: list[float]
    product: list[float]
    plain: list[float]
    other: list[float]
    batch: int
    flops: int

    @property
    def shares(self) -> list[float]:
        """Of the product's rate."""
        return [self.flops / (2 * WIDTH**3) * a for a in ratios(self.product, self.ours)]

    @property
    def against_plain(self) -> list[float]:
        """Ours over plain, which was done twice in every round."""
        return ratios(self.ours, [math.sqrt(a * b) for a, b in zip(self.plain, self.other, strict=True)])

    @property
    def noise(self) -> float:
        """How far the two plain ones lie from one another in the median, as a part of their time."""
        return statistics.median(abs(math.log(a)) for a in ratios(self.plain, self.other))

    def row(self, name: str) -> Row:
        ours, theirs = amount(self.ours, "s"), f"plain eager PyTorch: {amount(self.plain, 's')}"
        told = f"{theirs}; two of it differ by {self.noise:.1%}"
        return Row(f"a step of {name}", ours, told, self.against_plain, at_most=1 + self.noise)

    def columns(self) -> list[str]:
        ours = statistics.median(self.ours)
        low, middle, high = statistics.quantiles(self.against_plain, n=4)
        return [
            str(self.batch),
            f"{1e3 * ours:.1f}",
            f"{1e3 * statistics.median(self.plain):.1f}",
            f"{middle:.3f} ({low:.3f} .. {high:.3f})",
            f"{self.noise:.1%}",
            f"{self.flops / 1e9:.1f}",
            f"{self.flops / ours / 1e9:.1f}",
            f"{statistics.median(self.shares):.0%}",
        ]

    def full_columns(self) -> list[str]:
        ours = statistics.median(self.ours)
        sample, step, rate = (v / 1e9 for v in (self.flops / self.batch, self.flops, self.flops / ours))
        figures = (f"{sample:,.1f}", f"{step:,.1f}", f"{rate:.1f}", f"{statistics.median(self.shares):.0%}")
        return [str(self.batch), str(len(self.ours)), f"{ours:.2f}", *figures]


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


def _product() -> Callable[[], object]:
    matrix = torch.rand(WIDTH, WIDTH)
    return lambda: torch.mm(matrix, matrix)


class Numbered:
    """A step that counts itself: each call is the next one."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step, self._number = step, 0

    def __call__(self) -> None:
        self._number += 1
        self._step(self._number)


def measure(config: RunConfig, rounds: int, clock: Clock) -> Measured:
    """Ours and two plain ones at the config's batch."""
    sizes = (config.data.batch_size,)
    step, size = our_step(config, sizes)
    works = {"ours": Numbered(step), "product": _product()}
    works |= {name: Numbered(plain_step(config, sizes)) for name in ("plain", "other")}
    with as_it_is(config.trainer.compile), Count() as count:
        works["ours"]()
    return Measured(**in_turns(works, rounds, WARM, clock), batch=size, flops=count.flops)


def measure_full(config: RunConfig, rounds: int, budget: float, clock: Clock) -> Measured:
    """Ours alone, at the smallest batch."""
    flops, size = counted(config)
    gc.collect()  # that network goes before the one that is measured comes
    step, _ = our_step(config, (size,))
    ours, product = Numbered(step), _product()
    number = max(1, min(rounds, int(budget / seconds(ours, clock))))
    found: dict[str, list[float]] = {"ours": [], "product": []}
    for _ in range(number):
        found["product"].append(min(seconds(product, clock) for _ in range(PRODUCTS)))
        found["ours"].append(seconds(ours, clock))
    return Measured(**found, plain=[], other=[], batch=size, flops=flops)


def counted(config: RunConfig) -> tuple[int, int]:
    """Operations of a step of the smallest batch, and its samples."""
    module, batch, size = _made(config, SMALLEST)
    with shapes_only_if_large(module, batch), Count() as count:
        module.optimize(StillEngine(module), batch, module.configure_optimizers(), 1)
    return count.flops, size


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
    clock = CLOCKS[args.clock]
    found = measure_full(config, args.rounds, args.budget, clock) if args.full else measure(config, args.rounds, clock)
    if args.profile:
        show_profile(config, (found.batch,), name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all nine demos")
    parser.add_argument("--full", action="store_true", help="the recipes' networks, at the smallest batch they take")
    parser.add_argument("--rounds", type=int, help="21; with --full 5 at most")
    parser.add_argument("--budget", type=float, default=60, help="seconds of one network's rounds, with --full")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this process alone")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    options = [word for word in sys.argv[1:] if word not in args.names]
    args.rounds = args.rounds or (5 if args.full else 21)
    if args.one:
        torch.set_num_threads(1)
        print(json.dumps(asdict(one(args.names[0], args))))
    elif args.full:
        full(args.names or FULL, options)
    else:
        beside_plain(args.names or (DEMOS + MORE if args.all else DEMOS), options, args)


def beside_plain(names: Sequence[str], options: list[str], args: argparse.Namespace) -> None:
    """The demos: a row each."""
    rows: list[Row] = []
    lines, failed = [], False
    for name in names:
        found = apart(name, options, LONGEST)
        if isinstance(found, str):
            failed = True
            lines.append([name, found, *(len(COLUMNS) - 2) * [""]])
            continue
        rows.append(found.row(name))
        lines.append([name, *found.columns()])
        print(*lines[-1], sep="\t", file=sys.stderr, flush=True)
    grid = Grid(f"{args.rounds} rounds, quartiles, {args.clock} time, one thread", COLUMNS, lines)
    Console(width=140).print(grid.shown())
    hand_over("systems", rows, [grid])
    if failed:
        raise UserError(
            "not every system could be measured; the table says which; name the others to measure them alone."
        )


def full(names: Sequence[str], options: list[str]) -> None:
    """The recipes' networks: a table, kept as it grows where it is of all of them."""
    began, lines = time.monotonic(), []
    title = "Our step at full size, the smallest batch, float32, one thread"
    for name in names:
        found = apart(name, options, LONGEST_FULL)
        cells = [found, *(len(FULL_COLUMNS) - 2) * [""]] if isinstance(found, str) else found.full_columns()
        lines.append([name, *cells])
        print(*lines[-1], sep="\t", file=sys.stderr, flush=True)
        if tuple(names) == FULL:
            run = results.Run(
                "python -m benchmarks.systems --full",
                time.monotonic() - began,
                [],
                grids=[Grid(title, FULL_COLUMNS, lines)],
            )
            results.keep(FULL_SIZE, run)
    Console(width=140).print(Grid(title, FULL_COLUMNS, lines).shown())
    if tuple(names) == FULL:
        print(write_results())


def apart(name: str, options: list[str], longest: float) -> Measured | str:
    """Measured in a process of its own, so that none finds another's memory; or what kept it from being measured."""
    said = lines_of("systems", [name, "--one", *options], longest)
    if isinstance(said, str):
        return said
    *before, row = said
    for line in before:
        print(line)
    return Measured(**json.loads(row))


if __name__ == "__main__":
    run_command(main)
