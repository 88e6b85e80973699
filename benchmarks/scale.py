"""What will be slow at a size that nobody has here: samples, runs, ranks, nodes, failures. Measured where it can be, computed where not.

    python -m benchmarks.scale [loader status rendezvous ddp goodput] [--all]

loader: 10^9 samples (100,000 names of one real shard): restored at any position in a fresh process. Measured.
status: one look at 10^4 run folders, cold and warm, without SLURM. Measured.
rendezvous: 1,024 clients, threads of a few processes of this machine, find one TCPStore and meet in it as ``jobs/rendezvous.py`` does.
  Torch looks up the name of who it talks to; where nobody answers that costs five seconds a time, so one second and one try are set.
  Simulated: the network (all of it is this machine's loopback) and the 1,024 machines. Not made: gloo's connections between all ranks. The
  agreement of a step is counted: messages one after the other along a binary tree and back, each of a stated latency.
ddp: efficiency on 1-64 nodes of 4 A100 (weak scaling: every GPU takes the recipe's batch / 4) from counted FLOPs and bytes and the
  bandwidths below. Computed, and no promise: it knows no stragglers. Counting makes a step: three networks take minutes for it (--all).
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
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.distributed import TCPStore

from benchmarks.apart import lines_of
from benchmarks.launch import seconds
from benchmarks.restore import write_dataset
from benchmarks.rows import Row, amount, hand_over
from benchmarks.status import make_runs
from benchmarks.systems import FULL, LONGEST
from jobs.configs import ROOT, load_named
from jobs.describe import describe
from jobs.interval import DAY, NODE_MTBF, Saving, best_interval
from monitoring.overview import CACHE
from pipeline.arithmetic import STATED
from pipeline.config import RunConfig
from pipeline.errors import run_command

SHARDS, SAMPLES = 100_000, 10_000
RUNS = 10_000
LINES = 10  # of a journal: only those of runs that train are read
RANKS, PROCESSES = 1024, 4
MESSAGE = 20e-6  # seconds of a small TCP message between two nodes; two a level of the tree
QUICK = tuple(name for name in FULL if name not in ("diff_mst", "dismix", "jingle_d"))
NODES = (1, 2, 4, 8, 16, 32, 64)
GPUS = 4  # a node
# Bytes a second and GPU or node, and the share of the peak that a step reaches. A100: NVLink 3 as NCCL's all-reduce uses it (of 300 GB/s
# a direction), and two HDR ports a node (2 x 200 Gbit/s) at four fifths.
INSIDE, BETWEEN = 230e9, 0.8 * 50e9
REACHED = 0.4
HIDDEN = (
    0.6  # of a step's compute is backward behind the first bucket: what averaging may hide behind; a GAN hides nothing
)
BUCKET = 25 << 20  # bytes: the last one has nothing to hide behind
RESTART = 120.0  # seconds from a failure to the next step: SLURM's requeue, start-up, restore
RUN_LENGTH = 30 * DAY
DRAWS = 400  # runs
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the recommended interval


# -- loader, status, rendezvous: measured ------------------------------------------------------------------------------


def loader(console: Console) -> list[Row]:
    table = Table(
        "up to", "seconds (most)", "MB (most)", title=f"loader: {SHARDS * SAMPLES:,} samples, {SHARDS:,} shards"
    )
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        write_dataset(Path(folder), SHARDS, SAMPLES)
        found = []
        for position in (0, 12_345_678_901_234, 98_765_432_109_876):
            line = [sys.executable, "benchmarks/restore.py", "--folder", folder, "--position", str(position)]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(line, check=True, capture_output=True, text=True, cwd=ROOT, env=env)
            found.append(json.loads(done.stdout))
    for part in ("manifest read", "loader made", "first batch"):
        took, grown = zip(*(parts[part] for parts in found), strict=True)
        table.add_row(part, *(f"{statistics.median(v):.2f} ({max(v):.2f})" for v in (took, grown)))
    console.print(table)
    what = f"first batch at any position of {SHARDS * SAMPLES:,} samples"
    return [Row(what, amount(took, "s"), f"grown by {amount(grown, 'MB')}", took, unit="s")]


def status(console: Console) -> list[Row]:
    look = [sys.executable, "monitoring/status.py", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as text:
        make_runs(Path(text), RUNS, [], LINES)
        times: dict[str, list[float]] = {"interpreter": [], "cold": [], "warm": []}
        for _ in range(3):
            (Path(text) / CACHE).unlink(missing_ok=True)
            times["interpreter"].append(seconds([sys.executable, "-c", "pass"], env))
            for name in ("cold", "warm"):
                times[name].append(seconds([*look, "--runs", text], env))
    table = Table("look", "seconds (most)", title=f"status.py: {RUNS:,} runs")
    for name, values in times.items():
        table.add_row(name, f"{statistics.median(values):.2f} ({max(values):.2f})")
    console.print(table)
    theirs = f"cold: {amount(times['cold'], 's')}"
    return [Row(f"status.py, {RUNS:,} runs, warm", amount(times["warm"], "s"), theirs, times["warm"], unit="s")]


def rendezvous(console: Console) -> list[Row]:
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
    console.print(
        f"rendezvous: {RANKS:,} clients connected, checked the token and met after {met:.2f} s (loopback, {os.cpu_count()} cores)"
    )
    hops = 2 * math.ceil(math.log2(RANKS))
    console.print(
        f"agreement of a step, counted: {2 * (RANKS - 1):,} messages, {hops} one after the other, {1e3 * hops * MESSAGE:.1f} ms at "
        f"{1e6 * MESSAGE:.0f} us each; it travels while the step computes"
    )
    return [
        Row(
            f"rendezvous of {RANKS:,} ranks, simulated",
            amount([met], "s"),
            "connections of this machine",
            [met],
            unit="s",
        )
    ]


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


def ddp(console: Console, names: Sequence[str] = QUICK) -> list[Row]:
    columns = ("system", "GFLOP a sample", "MB of gradients", "ms a step", *(f"{n} x {GPUS}" for n in NODES))
    title = f"DDP on A100 at {REACHED:.0%} of its peak, {INSIDE / 1e9:.0f} GB/s inside, {BETWEEN / 1e9:.0f} GB/s between nodes"
    table = Table(*columns, title=title)
    last = []
    for name in names:
        counted = _apart(name)
        if isinstance(counted, str):
            table.add_row(name, counted)
            continue
        config, (flops, gradients) = load_named(name), counted
        share = max(1, config.data.batch_size // GPUS)
        compute = share * flops / (REACHED * STATED["A100"][config.trainer.precision])
        overlaps = len(type(config.model).optimizers) == 1
        cells = [f"{flops / 1e9:.1f}", f"{gradients / 1e6:.0f}", f"{1e3 * compute:.1f}"]
        found = [efficiency(compute, gradients, n, overlaps) for n in NODES]
        table.add_row(name, *cells, *(f"{e:.0%}" for e in found))
        last.append(found[-1])
    console.print(table)
    what = f"DDP on {NODES[-1]} nodes: efficiency, a system each (computed)"
    return [Row(what, amount(last, "%"), "one GPU that averages nothing", last, unit="%")]


def _apart(name: str) -> tuple[float, float] | str:
    """FLOPs of a sample and bytes of gradients of a step, counted in a process of its own; or why not."""
    said = lines_of("scale", ["--count", name], LONGEST)
    if isinstance(said, str):
        return said
    flops, gradients = json.loads(said[-1])
    return flops, gradients


def count(config: RunConfig) -> tuple[float, float]:
    found = describe(config, None)
    return found.flops / found.batch, float(found.sizes["gradients"])


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


def goodput(console: Console) -> list[Row]:
    title = f"goodput with one failure in {NODE_MTBF / DAY:.0f} node-days, {RESTART:.0f} s to come back"
    table = Table("checkpoint", "nodes", "best interval", *(f"{f:g} x" for f in FACTORS), title=title)
    rows = []
    for gigabytes in (1.0, 10.0):
        saving = Saving.of_bytes(int(gigabytes * 1e9))
        for nodes in (1, 64, 1024):
            mtbf = NODE_MTBF / nodes
            best = best_interval(saving, mtbf)
            shares = [kept(max(factor * best, saving.write), saving, mtbf) for factor in FACTORS]
            table.add_row(f"{gigabytes:g} GB", str(nodes), f"{best / 60:.1f} min", *(f"{s:.3%}" for s in shares))
            rows.append((nodes, gigabytes, shares))
    console.print(table)
    return [
        Row(
            f"goodput at the recommended interval, {nodes:,} nodes, {gigabytes:g} GB",
            f"{shares[FACTORS.index(1.0)]:.2%}",
            f"a third of it {shares[1]:.2%}, thrice {shares[3]:.2%} (simulated)",
            [shares[FACTORS.index(1.0)]],
            unit="%",
        )
        for nodes, gigabytes, shares in rows[-1:]
    ]


def kept(interval: float, saving: Saving, mtbf: float) -> float:
    """The mean of ``lived`` over runs, with the same failures for every interval."""
    return statistics.fmean(lived(interval, saving, mtbf, random.Random(seed)) for seed in range(DRAWS))


PARTS = {f.__name__: f for f in (loader, status, rendezvous, ddp, goodput)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--all", action="store_true", help="ddp: the networks that take minutes to count, too")
    parser.add_argument("--count", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        torch.set_num_threads(1)
        print(json.dumps(count(load_named(args.count))))
        return
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; parts are {', '.join(PARTS)}")
    parts: dict[str, Callable[[Console], list[Row]]] = PARTS | ({"ddp": lambda c: ddp(c, FULL)} if args.all else {})
    rows = [row for part in args.parts or PARTS for row in parts[part](Console(width=140))]
    hand_over("scale", rows)


if __name__ == "__main__":
    run_command(main)
