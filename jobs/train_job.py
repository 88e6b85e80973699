"""What runs on every task, on SLURM and on a laptop alike; holds no state but the run folder.

SLURM: submitit unpickles a ``TrainJob`` and calls it. Locally: ``python -m jobs.train_job RUN`` by ``jobs.local``.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.control import Stop, StopFlag
from pipeline.errors import RunFailed, run_command
from pipeline.runs import RunFolder
from pipeline.world import World

WAIT_TO_BE_ENDED = 120.0  # seconds; SLURM ends a requeued or preempted job within its KillWait or grace time


@dataclass(frozen=True)
class TrainJob:
    """Train the run in ``path`` until it is complete or told to stop."""

    path: str

    def __call__(self) -> str:
        run = RunFolder(Path(self.path))
        with StopFlag().installed() as stop:
            reason = run_attempt(run, stop)
            if "SLURM_JOB_ID" in os.environ and reason in (Stop.WARNED, Stop.TERMINATED):
                come_back(run, reason)
            return reason.name


def come_back(run: RunFolder, reason: Stop) -> None:
    """After the collective save: one rank requeues, all wait to be ended by SLURM, so that the job never counts as completed.

    SIGTERM comes with a preemption, which requeues by itself, or with a cancellation, which must not come back: there we only wait. It
    also comes with a time limit that gave no warning (shortened by hand, say): that one we requeue.
    Raises RunFailed where nobody ends us; the batch script then decides.
    """
    from jobs.requeue import requeue, timed_out

    ours = os.environ["SLURM_PROCID"] == "0" and (reason is Stop.WARNED or timed_out(os.environ["SLURM_JOB_ID"]))
    if ours and not requeue(run, reason.words):
        raise RunFailed(f"{run.name} saved its state and is not requeued")
    time.sleep(WAIT_TO_BE_ENDED)
    raise RunFailed(f"{run.name} saved its state ({reason.words}) and nobody ended the job")


def run_attempt(run: RunFolder, stop: StopFlag) -> Stop:
    """One attempt on this rank: lease, rendezvous, restore, train. Heavy imports happen here, after the handlers are in place."""
    world, key, address = where_am_i()
    import torch
    import torch.distributed as dist

    from jobs import rendezvous
    from jobs.configs import load_frozen
    from models import registry
    from pipeline import checkpoint, rng
    from pipeline.distributed import make_fabric
    from pipeline.files import read_json
    from pipeline.shards import read_manifest
    from pipeline.trainer import Trainer

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    attempt = run.claim_attempt() if world.rank == 0 else None
    rendezvous.join(run, world, key, address)
    try:
        config = load_frozen(run.config_file)
        manifest = read_manifest(Path(read_json(run.launch_file)["data"]))
        fabric = make_fabric(config.trainer, world)
        torch.manual_seed(rng.key(config.seed, "initial weights"))
        module = registry.part(config.model.system, "train_module").TrainModule(config, manifest.info)
        if config.init_from and not checkpoint.steps(run.checkpoints):
            checkpoint.load_weights(module, run.path.parent.parent / config.init_from)
        return Trainer(run, config, module, manifest, fabric, world, attempt, stop).fit()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def where_am_i() -> tuple[World, str, str]:
    """(World, key of this attempt, address of this host) from the launcher's or SLURM's environment."""
    env = os.environ
    if "SLURMPHONY_LAUNCH" in env:
        size = int(env["WORLD_SIZE"])
        return World(int(env["RANK"]), size, int(env["RANK"]), size, 0), env["SLURMPHONY_LAUNCH"], "127.0.0.1"
    if "SLURM_PROCID" in env:
        size = int(env["SLURM_NTASKS"])
        world = World(
            int(env["SLURM_PROCID"]),
            size,
            int(env["SLURM_LOCALID"]),
            size // int(env["SLURM_NNODES"]),
            int(env["SLURM_NODEID"]),
        )
        key = f"{env['SLURM_JOB_ID']}_{env.get('SLURM_RESTART_COUNT', '0')}"
        return world, key, env.get("SLURMD_NODENAME") or socket.gethostname()
    return World(), "alone", "127.0.0.1"


def die_with(parent: int) -> None:
    """End this process when the launcher is gone: a rank must not train on beside its successor."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    if "SLURMPHONY_LAUNCH" in os.environ:
        die_with(int(os.environ["SLURMPHONY_PARENT"]))
    if len(sys.argv) != 2:
        raise RunFailed("jobs.train_job takes one run folder; it is started by launch.py")
    TrainJob(sys.argv[1])()
    return 0


if __name__ == "__main__":
    run_command(main)
