"""How the processes of one attempt find each other: a port that is really free, published in the run folder.

Rank 0 binds the store before anybody is told its address, so a taken port costs one try and never a hang. Candidates lie
below 32768, where the kernel's ephemeral range begins, and are drawn from the attempt's key, so that a requeued job gets a fresh
one. The published token tells an old address of a reused key from the present one.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import DistError, PrefixStore, Store, TCPStore, distributed_c10d

from pipeline.distributed import device_kind
from pipeline.errors import Unlucky
from pipeline.files import read_json, write_json
from pipeline.runs import RunFolder
from pipeline.world import World

PORTS = range(20000, 32768)
JOIN_SECONDS = 300.0
# Later a rank may be late for good reasons (it compiles, it reads a far file), and the trainer's watchdog knows best what is a hang: a
# collective's own end, which NCCL counts from when it is asked for, is the last resort.
COLLECTIVE_SECONDS = 3600.0
RECORDED = "2000"  # collectives that every rank remembers, for when they hang (torch's flight recorder)


def candidate_ports(key: str) -> list[int]:
    """All ports, in the order in which to try them: a pure function of the attempt's key (job id, restart count)."""
    return random.Random(key).sample(PORTS, len(PORTS))


def join(run: RunFolder, world: World, key: str, address: str) -> Store | None:
    """Make the default process group of this attempt; returns the store behind it, None where the world is one process.

    Args:
        key: equal on all ranks of an attempt, different for every attempt.
        address: a name or IP of this host that the other ranks can reach (used on rank 0).

    Raises Unlucky where no port can be bound or rank 0 is not found in time.
    """
    if world.size == 1:
        return None
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", RECORDED)
    path = run.path / "rendezvous" / f"{key}.json"
    path.parent.mkdir(exist_ok=True)
    timeout = timedelta(seconds=JOIN_SECONDS)
    store = PrefixStore("slurmphony", _serve(path, key, address) if world.rank == 0 else _find(path))
    backend = "cpu:gloo,cuda:nccl" if device_kind() == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    dist.barrier()
    distributed_c10d._set_pg_timeout(timedelta(seconds=COLLECTIVE_SECONDS), dist.group.WORLD)
    if world.rank == 0:
        path.unlink(missing_ok=True)
    return store


def _serve(path: Path, key: str, address: str) -> TCPStore:
    for port in candidate_ports(key):
        try:
            store = TCPStore(
                address, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=JOIN_SECONDS)
            )
        except DistError:  # the port is taken: bind is the test
            continue
        token = secrets.token_hex(8)
        store.set("token", token)
        write_json(path, {"address": address, "port": port, "token": token})
        return store
    raise Unlucky(
        f"no free port from {PORTS.start} to {PORTS.stop - 1} on {address}; look at what listens there (ss -ltn)"
    )


def _find(path: Path) -> TCPStore:
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline:
        published = read_json(path)
        if published:
            try:
                store = TCPStore(
                    published["address"], published["port"], is_master=False, timeout=timedelta(seconds=10)
                )
                if store.get("token") == published["token"].encode():
                    store.set_timeout(timedelta(seconds=JOIN_SECONDS))
                    return store
            except DistError:  # nobody there (any more): an address of a former attempt
                time.sleep(0.5)
        time.sleep(0.05)
    raise Unlucky(f"rank 0 did not publish its address in {path} within {JOIN_SECONDS:.0f} s; look at rank 0's log")
