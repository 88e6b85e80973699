"""What will be slow at a size that nobody has here: samples, runs, ranks, nodes, failures. Measured where it can be, computed where not.

    python -m benchmarks.scale [loader status rendezvous ddp goodput]

loader: 10^9 samples (100,000 names of one real shard): restored at any position in a fresh process. Measured.
status: one look at 10^4 run folders, cold and warm, without SLURM. Measured; files lie in main memory where there is room.
rendezvous: 1,024 clients, threads of a few processes of this machine, find one TCPStore and meet in it as ``jobs/rendezvous.py`` does.
  Torch looks up the name of who it talks to; where nobody answers that costs five seconds a time, so one second and one try are set.
  Simulated: the network (all of it is this machine's loopback) and the 1,024 machines. Not made: gloo's connections between all ranks. The
  agreement of a step is counted: messages one after the other along a binary tree and back, each of a stated latency.
ddp: efficiency on 1-64 nodes of 4 A100 (weak scaling: every GPU takes the recipe's batch / 4) from counted FLOPs and bytes and the
  bandwidths below, or from counted operations where launching them takes longer. Computed, and no promise: it knows no stragglers. Counted
  is each full-size step (``jobs/describe.py``); a recurrence that cuDNN does in one kernel counts step by step. A network whose step takes
  milliseconds at the recipe's batch cannot hide its averaging; the last column says at how many samples a GPU it would.
goodput: the share of time that stays in the result where nodes fail, for intervals around the recommended one. Simulated, failures drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
from rich.console import Console
from torch.distributed import TCPStore

from benchmarks.apart import lines_of
from benchmarks.launch import seconds
from benchmarks.measure import many_files, spread
from benchmarks.restore import write_dataset
from benchmarks.rows import Grid, Row, amount, hand_over
from benchmarks.status import make_runs
from benchmarks.systems import FULL
from jobs.configs import ROOT, load_named
from jobs.describe import describe
from jobs.interval import DAY, NODE_MTBF, Saving, best_interval
from monitoring.overview import CACHE
from pipeline.arithmetic import STATED
from pipeline.config import RunConfig
from pipeline.errors import UserError, run_command

SHARDS, SAMPLES = 100_000, 10_000
RUNS = 10_000
LINES = 10  # of a journal: only those of runs that train are read
RANKS, PROCESSES = 1024, 4
MESSAGE = 20e-6  # seconds of a small TCP message between two nodes; two a level of the tree
COUNTING = 120  # seconds for one network, its building included
NODES = (1, 2, 4, 8, 16, 32, 64)
GPUS = 4  # a node
# Bytes a second and GPU or node, and the share of the peak that a step reaches. A100: NVLink 3 as NCCL's all-reduce uses it (of 300 GB/s
# a direction), and two HDR ports a node (2 x 200 Gbit/s) at four fifths.
INSIDE, BETWEEN = 230e9, 0.8 * 50e9
REACHED = 0.4
LAUNCH = 5e-6  # seconds that a GPU takes at least for an operation, however small
HIDDEN = (
    0.6  # of a step's compute is backward behind the first bucket: what averaging may hide behind; a GAN hides nothing
)
BUCKET = 25 << 20  # bytes: the last one has nothing to hide behind
WANTED = 0.9  # efficiency on all nodes
RESTART = 120.0  # seconds from a failure to the next step: SLURM's requeue, start-up, restore
RUN_LENGTH = 30 * DAY
DRAWS = 400  # runs
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the recommended interval


Found = tuple[list[Row], list[Grid]]


# -- loader, status, rendezvous: measured ------------------------------------------------------------------------------


def loader() -> Found:
    with many_files("bench-scale-") as folder:
        write_dataset(folder, SHARDS, SAMPLES)
        found = []
        for position in (0, 12_345_678_901_234, 98_765_432_109_876):
            line = [sys.executable, "-m", "benchmarks.restore", "--folder", str(folder), "--position", str(position)]
            done = subprocess.run(line, check=True, capture_output=True, text=True, cwd=ROOT)
            found.append(json.loads(done.stdout))
    parts = {part: [one[part] for one in found] for part in ("manifest read", "loader made", "first batch")}
    columns = {part: [spread(values) for values in zip(*pairs, strict=True)] for part, pairs in parts.items()}
    grid = Grid(
        f"loader: {SHARDS * SAMPLES:,} samples in {SHARDS:,} shards",
        ("up to", "seconds", "MB"),
        [(part, *cells) for part, cells in columns.items()],
    )
    took, grown = zip(*parts["first batch"], strict=True)
    read = [seconds for seconds, _ in parts["manifest read"]]
    what = f"first batch at any position of {SHARDS * SAMPLES:,} samples"
    told = f"reading its manifest: {amount(read, 's')}; grown by {amount(grown, 'MB')}"
    return [Row(what, amount(took, "s"), told, took, unit="s")], [grid]


def status() -> Found:
    look = [sys.executable, "monitoring/status.py", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with many_files("bench-scale-") as folder:
        make_runs(folder, RUNS, [], LINES)
        times: dict[str, list[float]] = {"interpreter": [], "cold": [], "warm": []}
        for _ in range(3):
            (folder / CACHE).unlink(missing_ok=True)
            times["interpreter"].append(seconds([sys.executable, "-c", "pass"], env))
            for name in ("cold", "warm"):
                times[name].append(seconds([*look, "--runs", str(folder)], env))
    theirs = f"cold: {amount(times['cold'], 's')}; interpreter: {amount(times['interpreter'], 's')}"
    return [Row(f"status.py, {RUNS:,} runs, warm", amount(times["warm"], "s"), theirs, times["warm"], unit="s")], []


def rendezvous() -> Found:
    # Before the first look-up, which reads them: the store's own thread looks up who connects, too.
    os.environ |= {"RES_OPTIONS": "timeout:1 attempts:1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=300))
    server.set("token", "here")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "benchmarks/scale_ranks.py", str(server.port), str(RANKS // PROCESSES), str(RANKS)]
    workers = [subprocess.Popen(words, cwd=ROOT, env=env) for _ in range(PROCESSES)]
    while server.add("ready", 0) < PROCESSES:
        time.sleep(0.1)
    began = time.perf_counter()
    server.set("go", "")
    server.wait(["all"])
    met = time.perf_counter() - began
    for worker in workers:
        worker.wait()
    hops = 2 * math.ceil(math.log2(RANKS))
    agreement = Grid(
        "agreement of a step, counted; it travels while the step computes",
        ("ranks", "messages", "one after the other", f"ms, at {1e6 * MESSAGE:.0f} us each"),
        [(f"{RANKS:,}", f"{2 * (RANKS - 1):,}", str(hops), f"{1e3 * hops * MESSAGE:.1f}")],
    )
    what = f"{RANKS:,} clients connected, checked the token and met"
    return [Row(what, amount([met], "s"), "simulated: this machine's loopback", [met], unit="s")], [agreement]


# -- data parallelism: computed from what is counted -------------------------------------------------------------------


def averaging(gradients: float, nodes: int) -> float:
    """Seconds of one all-reduce of so many bytes: a ring within each node, one between nodes of what each GPU then holds a share of."""
    inside = 2 * (GPUS - 1) / GPUS * gradients / INSIDE
    return inside + 2 * (nodes - 1) / nodes * gradients / BETWEEN


def efficiency(compute: float, gradients: float, nodes: int, overlaps: bool) -> float:
    """Of ``nodes`` nodes beside one GPU that averages nothing."""
    whole, last = averaging(gradients, nodes), averaging(min(gradients, BUCKET), nodes)
    shown = max(last, whole - HIDDEN * compute) if overlaps else whole
    return compute / (compute + shown)


def needed(sample: float, launches: float, gradients: float, overlaps: bool) -> int:
    """Samples a GPU, each of so many seconds, from which on all nodes reach ``WANTED``; a power of two."""
    samples = 1
    while efficiency(max(samples * sample, launches), gradients, NODES[-1], overlaps) < WANTED:
        samples *= 2
    return samples


def ddp() -> Found:
    last, lines = [], []
    for name in FULL:
        config, (flops, operations, gradients) = load_named(name), _apart(name)
        share = max(1, config.data.batch_size // GPUS)
        sample = flops / (REACHED * STATED["A100"][config.trainer.precision])
        launches = operations * LAUNCH
        compute = max(share * sample, launches)
        overlaps = len(type(config.model).optimizers) == 1
        found = [efficiency(compute, gradients, n, overlaps) for n in NODES]
        times = (f"{1e3 * share * sample:.1f}", f"{1e3 * launches:.1f}")
        figures = (f"{flops / 1e9:,.1f}", f"{gradients / 1e6:.0f}", str(share), *times)
        enough = str(needed(sample, launches, gradients, overlaps))
        lines.append((name, *figures, *(f"{e:.0%}" for e in found), enough))
        last.append(found[-1])
    machine = f"A100 at {REACHED:.0%} of its peak or {1e6 * LAUNCH:.0f} us an operation"
    title = f"DDP on {machine}, {INSIDE / 1e9:.0f} GB/s inside, {BETWEEN / 1e9:.0f} GB/s between nodes (computed)"
    nodes = (f"{n} x {GPUS}" for n in NODES)
    columns = (
        "system",
        "GFLOP a sample",
        "MB of gradients",
        "samples a GPU",
        "ms of arithmetic",
        "of launches",
        *nodes,
    )
    grid = Grid(title, (*columns, f"samples for {WANTED:.0%}"), lines)
    told = f"{FULL[last.index(min(last))]} least, {FULL[last.index(max(last))]} most"
    what = f"DDP on {NODES[-1]} nodes at the recipes' batches: efficiency, computed"
    return [Row(what, told, "one GPU that averages nothing", last, unit="%")], [grid]


def _apart(name: str) -> tuple[float, float, float]:
    """FLOPs of a sample, and operations and bytes of gradients of a step, counted in a process of its own."""
    said = lines_of("scale", ["--count", name], COUNTING)
    if isinstance(said, str):
        raise UserError(f"{name} could not be counted: {said}; type python -m benchmarks.scale --count {name}.")
    flops, operations, gradients = json.loads(said[-1])
    return flops, operations, gradients


def count(config: RunConfig) -> tuple[float, float, float]:
    found = describe(config, None)
    return found.flops / found.batch, float(found.operations), float(found.sizes["gradients"])


# -- failures: simulated -----------------------------------------------------------------------------------------------


def lived(interval: float, saving: Saving, mtbf: float, draw: random.Random) -> float:
    """The share of a run's time that trained what stayed: saves stall it, and a failure takes back what no finished write holds."""
    clock = useful = 0.0
    while clock < RUN_LENGTH:
        alive = draw.expovariate(1 / mtbf)
        rounds, into = divmod(alive, interval + saving.stall)
        written = (
            rounds if into > saving.write - saving.stall or not rounds else rounds - 1
        )  # the last save was still being written
        useful += written * interval
        clock += alive + RESTART
    return useful / clock


def goodput() -> Found:
    lines = []
    for gigabytes, nodes in ((g, n) for g in (1.0, 10.0) for n in (1, 64, 1024)):
        saving, mtbf = Saving.of_bytes(int(gigabytes * 1e9)), NODE_MTBF / nodes
        best = best_interval(saving, mtbf)
        shares = [kept(max(factor * best, saving.write), saving, mtbf) for factor in FACTORS]
        lines.append((f"{gigabytes:g} GB", str(nodes), f"{best / 60:.1f} min", *(f"{s:.3%}" for s in shares)))
    title = (
        f"goodput by interval, one failure in {NODE_MTBF / DAY:.0f} node-days, {RESTART:.0f} s to come back (simulated)"
    )
    grid = Grid(title, ("checkpoint", "nodes", "best interval", *(f"{f:g} x" for f in FACTORS)), lines)
    told = f"a third of it {shares[1]:.2%}, thrice {shares[3]:.2%} (simulated)"
    what = f"goodput at the recommended interval, {nodes:,} nodes, {gigabytes:g} GB"
    at_best = shares[FACTORS.index(1.0)]
    return [Row(what, f"{at_best:.2%}", told, [at_best], unit="%")], [grid]


def kept(interval: float, saving: Saving, mtbf: float) -> float:
    """The mean of ``lived`` over runs, with the same failures for every interval."""
    return statistics.fmean(lived(interval, saving, mtbf, random.Random(seed)) for seed in range(DRAWS))


PARTS: dict[str, Callable[[], Found]] = {f.__name__: f for f in (loader, status, rendezvous, ddp, goodput)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--count", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        torch.set_num_threads(1)
        print(json.dumps(count(load_named(args.count))))
        return
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; parts are {', '.join(PARTS)}")
    console = Console(width=None if sys.stdout.isatty() else 170)
    rows: list[Row] = []
    grids: list[Grid] = []
    for part in args.parts or PARTS:
        began = time.monotonic()
        found, tables = PARTS[part]()
        rows, grids = rows + found, grids + tables
        for table in tables:
            console.print(table.shown())
        for row in found:
            console.print(f"{row.what}: {row.shown}; {row.theirs}")
        console.print(f"({part}: {time.monotonic() - began:.0f} s)")
    hand_over("scale", rows, grids)


if __name__ == "__main__":
    run_command(main)
