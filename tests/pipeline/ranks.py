"""Several ranks as real processes on gloo. They are forked from a server that has imported the slow libraries once."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.world import World

SECONDS = 120  # a pair that needs longer hangs


def run_ranks(
    size: int, folder: Path, work: Callable[..., Any], *words: Any, timeout: float = SECONDS / 4
) -> tuple[list[int], list[Any]]:
    """Exit codes and results (through JSON) of ``work(world, *words)`` on ``size`` ranks; a rank whose peer died is ended.

    ``timeout``: seconds after which a collective of the default group gives up.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.preload"])
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store_{os.urandom(4).hex()}"
    ranks = [
        context.Process(target=_rank, args=(r, size, store, timeout, work, words), daemon=True) for r in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(SECONDS)
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
            rank.join()
    results = [Path(f"{store}.{r}.json") for r in range(size)]
    return [rank.exitcode for rank in ranks], [json.loads(p.read_text()) if p.exists() else None for p in results]


def _rank(rank: int, size: int, store: Path, timeout: float, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    shared = dist.FileStore(str(store), size)
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    result = work(World(rank, size, rank, size, 0), *words)
    Path(f"{store}.{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
