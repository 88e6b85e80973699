"""A short look at every GPU and at the network between them, inside the allocation and before the run touches anything.

A bad node costs a run most when nobody knows which one it is: the job hangs, or learns garbage. Here every rank multiplies a matrix whose
product is known, all of them sum numbers whose sum is known, and each says so in the rendezvous store. Who is silent, wrong or far slower
than the rest is named; ``jobs.train_job`` puts the node on the exclude list and sends the job back into the queue.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import DistError, HashStore, Store

from pipeline.distributed import device_kind, own_device
from pipeline.errors import Unlucky
from pipeline.world import World

SECONDS = 20.0  # for each of the two parts
STARTING = 60.0  # for what must start before them, slowly on a cold node: CUDA, and NCCL's rings. The gate answers within three minutes
PATIENCE = 5.0  # beyond that, for what the ranks say of it to arrive
SLOW = 3.0  # times the median of all GPUs
NOTICEABLE = 0.1  # seconds for all products; what is faster than that is no reason to go without a node for a day
PRODUCTS = 30  # that are timed together: one takes milliseconds, and anything may come between
WIDTH = {"cuda": 8192, "cpu": 256}  # of the square matrices
NUMBERS = {"cuda": 1 << 26, "cpu": 1 << 18}  # float32 values that are summed


@dataclass(frozen=True)
class Finding:
    """What one rank saw. ``seconds`` of its part; ``problem`` in words, empty where all is well."""

    rank: int
    node: str
    seconds: float = 0.0
    problem: str = ""


class BadNode(Unlucky):
    """The gate did not open. ``nodes``: those to blame, with why; empty where it cannot be told."""

    def __init__(self, nodes: dict[str, str], message: str) -> None:
        super().__init__(message)
        self.nodes = nodes


def gate(world: World, store: Store | None, key: str, node: str, nodes: dict[int, str]) -> dict[str, float]:
    """Check all GPUs, then the network. Returns the seconds of the slowest product and of the sum, and its rate in GB/s.

    Args:
        store: that of ``rendezvous.join``; None where the world is one process.
        key: of this attempt; findings of a former one are not read.
        node: this host's name.
        nodes: name by rank, for those that are silent; empty where it is not known.

    Raises BadNode, on every rank alike.
    """
    kind = device_kind()
    device = own_device(world)
    store = store or HashStore()
    products = _together(world, store, f"{key}/product", _product(world, device, node), nodes, compare=kind == "cuda")
    sums = (
        _together(world, store, f"{key}/sum", _sum(world, device, node), nodes, compare=False) if world.size > 1 else []
    )
    figures = {"product_s": round(max(f.seconds for f in products), 4)}
    if sums:
        slowest = max(f.seconds for f in sums)
        figures |= {"sum_s": round(slowest, 4), "sum_gb_per_s": round(4e-9 * NUMBERS[kind] / max(slowest, 1e-9), 3)}
    return figures


def _product(world: World, device: torch.device, node: str) -> Finding:
    """What comes after a first product is timed: that one starts CUDA and loads its libraries, slowly on a cold node."""
    width, seconds = WIDTH[device.type], 0.0
    try:
        for times in (1, PRODUCTS):
            began = time.perf_counter()
            wrong = _wrong_products(width, device, times)
            seconds = time.perf_counter() - began
            if wrong:
                return Finding(world.rank, node, seconds, f"{wrong} of {width * width} products are wrong")
    except RuntimeError as error:  # whatever a broken GPU says
        return Finding(world.rank, node, seconds, f"a matrix product failed: {' '.join(str(error).split())[:200]}")
    return Finding(world.rank, node, seconds)


def _wrong_products(width: int, device: torch.device, times: int) -> int:
    """Every row holds one small integer, the width is a power of two: the product is exact in bfloat16, however it is summed."""
    rows = (torch.arange(width, device=device) % 7 + 1).float()
    left = rows[:, None].repeat(1, width).to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    ones = torch.ones_like(left)
    for _ in range(times):
        product = torch.mm(left, ones)
    return int((product != (rows * width)[:, None]).sum())


def _sum(world: World, device: torch.device, node: str) -> Finding:
    """The sum over ranks of rank + 1, which float32 holds exactly; waited for without blocking, so that a dead link has an end.

    A sum of one number goes before: with it NCCL finds its peers, which takes seconds, and on a dead link for ever.
    """
    numbers = torch.full((NUMBERS[device.type],), float(world.rank + 1), device=device)
    began = time.perf_counter()
    try:
        if not _finished(numbers[:1].clone(), STARTING):
            return Finding(world.rank, node, STARTING, f"the ranks' network did not come up within {STARTING:.0f} s")
        began = time.perf_counter()
        if not _finished(numbers, SECONDS):
            return Finding(world.rank, node, SECONDS, f"the sum over all ranks did not finish in {SECONDS:.0f} s")
        seconds = time.perf_counter() - began
        expected = world.size * (world.size + 1) / 2
        wrong = int((numbers != expected).sum())
        problem = f"{wrong} of {numbers.numel()} sums over all ranks are wrong" if wrong else ""
    except RuntimeError as error:  # a peer has gone
        seconds, problem = (
            time.perf_counter() - began,
            f"the sum over all ranks failed: {' '.join(str(error).split())[:200]}",
        )
    return Finding(world.rank, node, seconds, problem)


def _finished(numbers: torch.Tensor, limit: float) -> bool:
    """Whether the sum over all ranks, in place, came within ``limit`` seconds; by a thread, since already asking for it may block."""
    failed: list[RuntimeError] = []
    done = threading.Event()

    def add() -> None:
        try:
            work = dist.all_reduce(numbers, async_op=True)
            while not work.is_completed() and not given_up.is_set():
                time.sleep(0.0005)
            if not given_up.is_set():
                work.wait()
                done.set()
        except RuntimeError as error:  # a peer has gone
            failed.append(error)
            done.set()

    given_up = threading.Event()
    threading.Thread(target=add, name="gate", daemon=True).start()
    came = done.wait(limit)
    given_up.set()
    if failed:
        raise failed[0]
    return came


def _together(
    world: World, store: Store, key: str, mine: Finding, nodes: dict[int, str], *, compare: bool
) -> list[Finding]:
    """Every rank's finding. Rank 0 reads them and gives the verdict, which all follow."""
    store.set(f"{key}/{mine.rank}", json.dumps(asdict(mine)))
    if world.rank == 0:
        found = _collect(world, store, key, nodes)
        blamed = blame(found, compare)
        store.set(f"{key}/verdict", json.dumps({"findings": [asdict(f) for f in found], "blamed": blamed}))
    try:
        store.wait([f"{key}/verdict"], timedelta(seconds=2 * (STARTING + SECONDS + PATIENCE)))
    except DistError as error:
        raise BadNode({}, f"rank 0 gave no verdict on the nodes: {error}") from None
    verdict = json.loads(store.get(f"{key}/verdict"))
    if verdict["blamed"] is not None:
        named = "; ".join(f"{node}: {why}" for node, why in verdict["blamed"].items())
        general = next((f["problem"] for f in verdict["findings"] if f["problem"]), "")
        raise BadNode(verdict["blamed"], f"the nodes are not fit to train on ({named or general})")
    return [Finding(**f) for f in verdict["findings"]]


def _collect(world: World, store: Store, key: str, nodes: dict[int, str]) -> list[Finding]:
    deadline = time.monotonic() + STARTING + SECONDS + PATIENCE
    found = []
    for rank in range(world.size):
        left = max(0.01, deadline - time.monotonic())
        try:
            store.wait([f"{key}/{rank}"], timedelta(seconds=left))
            found.append(Finding(**json.loads(store.get(f"{key}/{rank}"))))
        except DistError:
            found.append(Finding(rank, nodes.get(rank, ""), STARTING + SECONDS, f"rank {rank} is silent"))
    return found


def blame(found: list[Finding], compare: bool) -> dict[str, str] | None:
    """Nodes to blame and why; None where all is well, empty where something is wrong that all of them see alike.

    ``compare``: whether far slower than the median is a fault.
    """
    bad = {f.rank: f.problem for f in found if f.problem}
    if compare:
        usual = statistics.median(f.seconds for f in found)
        slow = [f for f in found if not f.problem and f.seconds > max(SLOW * usual, NOTICEABLE)]
        bad |= {f.rank: f"rank {f.rank} took {f.seconds:.2f} s where {usual:.2f} s is usual" for f in slow}
    if not bad:
        return None
    nodes: dict[str, str] = {}
    for finding in found:
        if finding.rank in bad and finding.node:
            nodes.setdefault(finding.node, bad[finding.rank])
    everyone = {f.node for f in found}
    return nodes if len(everyone) == 1 or set(nodes) != everyone else {}
