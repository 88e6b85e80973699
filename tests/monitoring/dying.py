"""Real trainings that really die, one way a function, as the ranks of one local launch: what `monitoring/why.py` has to make out.

Ranks are forked from a server that has imported torch once; what they print is in their logs, and how a process ended is written down
as the launcher does it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from jobs.last_words import last_words, note_ended
from pipeline import heartbeat, lookout, pulse, reporter
from pipeline.control import Stop
from pipeline.distributed import make_fabric  # noqa: F401  imported before ranks are forked
from pipeline.files import write_json
from pipeline.runs import RunFolder
from pipeline.world import World
from tests.pipeline import stack

NODE = "n7"
HANG = 2.0  # trainer.hang_seconds
PLANTED = "planted.json"  # in the run folder: when it went wrong
Way = Callable[[World, RunFolder, Path], object]


def train(world: World, run: RunFolder, data: Path, poison: int = 0, **section: object) -> Stop:
    return stack.trainer_of(world, str(data), str(run.path), poison, **section).fit()


def in_steps(chosen: Callable[[int], bool], rank: int, act: Callable[[], object], **section: object) -> Way:
    """A training in which ``rank`` does something at the start of the steps that are ``chosen``; what it gives multiplies the loss."""

    def way(world: World, run: RunFolder, data: Path) -> object:
        real = stack.Stack.training_step

        def step(module, batch, at):
            factor = act() if chosen(at) and world.rank == rank else None
            values = real(module, batch, at)
            return values if factor is None else values | {"loss": values["loss"] * factor}

        stack.Stack.training_step = step  # this process is a fork, and about to end
        trainer = stack.trainer_of(world, str(data), str(run.path), **{"hang_seconds": HANG, **section})
        with trainer.attempt.stop.installed():
            return trainer.fit()

    return way


def in_step(number: int, rank: int, act: Callable[[], object], **section: object) -> Way:
    return in_steps(lambda at: at == number, rank, act, **section)


def slow_rank(world: World, run: RunFolder, data: Path) -> object:
    """Rank 1 takes its time in every step; the watch is made quick, so that a short run is long enough for it."""
    pulse.PULSE_SECONDS, heartbeat.HEARTBEAT_SECONDS, lookout.PERSISTS = 0.1, 0.05, 0.2
    return in_steps(lambda at: True, 1, lambda: time.sleep(0.03), max_steps=60)(world, run, data)


def nan_unlogged(world: World, run: RunFolder, data: Path) -> object:
    """From step 20 on rank 1's loss is NaN; nothing is logged or saved, so only the look at the clock finds it."""

    def nan() -> float:
        if not (run.path / PLANTED).exists():
            write_json(run.path / PLANTED, time.time())
        time.sleep(0.02)
        return float("nan")

    seldom = {"log_every": 10**6, "save_every": 10**6, "validate_every": 10**6, "max_steps": 10**6}
    return in_steps(lambda at: at >= 20, 1, nan, rollback={"times": 0}, **seldom)(world, run, data)


def superseded(world: World, run: RunFolder, data: Path) -> object:
    reporter.LEASE_SECONDS = 0.0
    slowly = in_steps(lambda at: True, 0, lambda: time.sleep(0.12) if run.claim_attempt() < 3 else None, max_steps=60)
    return slowly(world, run, data)


def with_workers(world: World, run: RunFolder, data: Path) -> object:
    """Samples are read by a process of its own, which is killed."""
    import psutil

    real = stack.config_of

    def config_of(**section):
        config = real(**section)
        return config.model_copy(update={"data": config.data.model_copy(update={"workers": 1})})

    stack.config_of = config_of
    return in_step(3, 0, lambda: [child.kill() for child in psutil.Process().children()] and None, max_steps=400)(
        world, run, data
    )


def other_shape(world: World, run: RunFolder, data: Path) -> object:
    """The weights of this run, for a module that is another."""
    from pipeline import checkpoint

    before = RunFolder(run.path.with_name("89abcdef"))
    train(world, before, data, max_steps=1)
    other = stack.Stack(stack.config_of(), {})
    other.first = torch.nn.Linear(5, 14)
    return checkpoint.start(other, {"init_from": before.path})


def unequal_shares(world: World, run: RunFolder, data: Path) -> object:
    from pipeline.loader import Loader
    from pipeline.manifest import read_manifest

    return Loader(read_manifest(data), "train", batch_size=8, rank=0, world_size=3, seed=0)


def no_memory(world: World, run: RunFolder, data: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), -1))
    torch.empty(1 << 31)


def no_room(world: World, run: RunFolder, data: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    train(world, run, data)


def not_a_number(world: World, run: RunFolder, data: Path) -> None:
    train(world, run, data, poison=3, rollback={"times": 0})


def no_data(world: World, run: RunFolder, data: Path) -> None:
    train(world, run, data / "elsewhere")


def damaged_data(world: World, run: RunFolder, data: Path) -> None:
    for shard in data.glob("*.tar"):
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    train(world, run, data)


def no_weights(world: World, run: RunFolder, data: Path) -> None:
    from models.codecs.weights import find_weights

    find_weights("encodec", data)


def wrong_products(world: World, run: RunFolder, data: Path) -> None:
    from torch.distributed import HashStore

    from jobs.gate import gate

    right = torch.mm
    torch.mm = lambda a, b: right(a, b) + 1
    gate(world, HashStore(), "key", NODE, {})


def no_port(world: World, run: RunFolder, data: Path) -> None:
    import socket

    from jobs import rendezvous

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        rendezvous.PORTS = range(taken.getsockname()[1], taken.getsockname()[1] + 1)
        rendezvous.join(run, World(0, 2, 0, 2, 0), "key", "127.0.0.1")


def no_rank_0(world: World, run: RunFolder, data: Path) -> None:
    from jobs import rendezvous

    rendezvous.JOIN_SECONDS = 0.2
    rendezvous.join(run, World(1, 2, 1, 2, 0), "key", "127.0.0.1")


def no_module(world: World, run: RunFolder, data: Path) -> None:
    import slurmphony_is_not_a_module  # noqa: F401


def programmers_mistake(world: World, run: RunFolder, data: Path) -> None:
    torch.ones(2, 3) @ torch.ones(2, 3)


def end_as(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def sleep() -> None:
    time.sleep(60)


WAYS: dict[str, Way] = {
    "no_memory": no_memory, "no_room": no_room, "not_a_number": not_a_number, "no_data": no_data, "damaged_data": damaged_data,
    "no_weights": no_weights, "wrong_products": wrong_products, "no_port": no_port, "no_rank_0": no_rank_0,
    "no_module": no_module, "programmers_mistake": programmers_mistake,
    "SIGKILL": in_step(3, 0, end_as(signal.SIGKILL)), "SIGSEGV": in_step(3, 0, end_as(signal.SIGSEGV)),
    "SIGINT": in_step(3, 0, end_as(signal.SIGINT)), "SIGUSR2": in_step(3, 0, end_as(signal.SIGUSR2)),
    "SIGTERM": in_step(3, 0, end_as(signal.SIGTERM)),
    "rank 1 is killed": in_step(3, 1, end_as(signal.SIGKILL)), "rank 1 sleeps": in_step(3, 1, sleep),
    "rank 1 is stopped": in_step(3, 1, end_as(signal.SIGSTOP)), "rank 1 is slow": slow_rank,
    "rank 1 leaves": in_step(3, 1, lambda: os._exit(0)), "rank 1 is nan": in_step(3, 1, lambda: float("nan"), rollback={"times": 0}),
    "rank 1 is nan, logged later": in_step(3, 1, lambda: float("nan"), rollback={"times": 0}, log_every=4),
    "leap": in_step(30, 0, lambda: 1e4, max_steps=40, rollback={"times": 0, "spike": 8.0}), "superseded": superseded,
    "rank 1 is nan, unlogged": nan_unlogged, "with_workers": with_workers, "other_shape": other_shape, "unequal_shares": unequal_shares,
}  # fmt: skip


def rank_dies(rank: int, size: int, way: str, path: str, data: str) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    run = RunFolder(Path(path))
    log = (run.logs / f"local_abc_rank{rank}.log").open("ab", buffering=0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    os.environ["TORCH_FR_BUFFER_SIZE"] = "100"  # as jobs.rendezvous does
    if size > 1:
        shared = dist.FileStore(f"{path}/store", size)
        dist.init_process_group("gloo", store=shared, rank=rank, world_size=size, timeout=timedelta(seconds=30))
    with last_words(run, rank, NODE):
        WAYS[way](World(rank, size, rank, size, 0), run, Path(data))
    sys.stderr.flush()


def die(way: str, run: RunFolder, data: Path, size: int = 1, patience: float = 60) -> list[int]:
    """Exit codes of the ranks; the first that failed ends the others, as the launcher does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.monitoring.dying"])
    ranks = [
        context.Process(target=rank_dies, args=(r, size, way, str(run.path), str(data)), daemon=True)
        for r in range(size)
    ]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + patience
    while not any(rank.exitcode for rank in ranks) and any(rank.is_alive() for rank in ranks):
        assert time.monotonic() < deadline, f"'{way}' did not end"
        time.sleep(0.02)
    failed = [i for i, rank in enumerate(ranks) if rank.exitcode]
    for i in failed:
        note_ended(run, i, ranks[i].exitcode)
    for rank in ranks:
        rank.join(3 if failed else 60)
        if rank.is_alive():
            rank.kill()
            rank.join()
    return [rank.exitcode for rank in ranks]
