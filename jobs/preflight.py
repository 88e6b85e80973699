"""What can be known wrong before anything is queued: every problem in one list, not the first only."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pipeline.config import RunConfig


def problems(config: RunConfig, world_size: int, runs: Path) -> list[str]:
    """One sentence a problem; empty where the run can start."""
    found = []
    batch = config.data.batch_size
    if batch % world_size:
        divisors = [str(n) for n in range(1, min(batch, 64) + 1) if batch % n == 0]
        found.append(
            f"the global batch (data.batch_size = {batch}) does not divide by {world_size} processes; "
            f"use {', '.join(divisors)} processes, or --set data.batch_size={-(-batch // world_size) * world_size}."
        )
    if config.trainer.strategy == "deepspeed" and world_size > 1 and importlib.util.find_spec("deepspeed") is None:
        found.append("DeepSpeed is not installed here; on Linux make setup installs it, or launch with --strategy ddp.")
    place = runs
    while not os.path.exists(place):  # noqa: PTH110  Path.exists raises where a parent may not be searched
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found.append(f"no permission to write in {place}; choose a folder for runs with --runs or SLURMPHONY_RUNS.")
    return found
