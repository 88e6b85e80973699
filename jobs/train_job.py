"""What runs on every task, on SLURM and on a laptop alike; holds no state but the run folder.

SLURM: submitit unpickles a ``TrainJob`` and calls it. Locally: ``python -m jobs.train_job RUN`` by ``jobs.local``.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.last_words import last_words
from pipeline.attempt import Attempt
from pipeline.control import Stop, StopFlag
from pipeline.deadline import Deadline
from pipeline.errors import EXIT_FAILED, EXIT_USER_ERROR, RunFailed, Unlucky, UserError, run_command, tell
from pipeline.runs import RunFolder
from pipeline.startup import StartUp
from pipeline.world import World

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.train_module import TrainModule

FIRST_SAID = 1.0  # seconds for rank 0 to write down why it failed, where others failed by the same
WRITTEN_DOWN = 5.0  # seconds for rank 0 to write down which node is bad: the first rank that exits ends all others


@dataclass(frozen=True)
class TrainJob:
    """Train the run in ``path`` until it is complete or told to stop.

    On SLURM a failure is one sentence, in the log and in the history, and leaves by SystemExit: submitit would show a traceback.
    """

    path: str

    def __call__(self) -> str:
        startup = StartUp()
        startup.mark("interpreter")
        run = RunFolder(Path(self.path))
        with StopFlag().installed() as stop:
            place = where_am_i()
            node = place.address if place.slurm else socket.gethostname()
            try:
                with last_words(run, place.world.rank, node):
                    reason = run_attempt(run, place, stop, startup)
            except (UserError, RunFailed) as error:
                write_down(run, place.world, error)
                leave_at_once(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED)
                if not place.slurm:
                    raise
                sys.exit(tell(error))
            except Exception:
                leave_at_once(EXIT_FAILED)
                raise
            if place.slurm and reason is not Stop.NO:
                print(f"{run.name} has stopped before its end: {reason.words}.", file=sys.stderr, flush=True)
                sys.exit(EXIT_FAILED)
            return reason.name


def leave_at_once(exit_code: int) -> None:
    """Let this process end, when all is said, without taking leave of its peers.

    NCCL's communicators are destroyed by all ranks of a node together, also where the interpreter does it on its way out, and the others
    may be waiting for this one: what it died of would be lost in a hang.
    """

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)

    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_initialized():
        atexit.register(end)


def write_down(run: RunFolder, world: World, error: UserError | RunFailed) -> None:
    """Say in the history that this run has failed, once: ``jobs.requeue`` goes by it, since srun's exit code is the killed ranks'."""
    if isinstance(error, Unlucky):
        return
    if world.rank:
        time.sleep(FIRST_SAID)
    told = (run.last_end() or {}).get("message")
    if not told or told not in str(error):
        step = (run.steps() or [0])[-1]
        run.note("end", reason="failed", step=step, gained=0, rank=world.rank, message=str(error))


def run_attempt(run: RunFolder, place: Place, stop: StopFlag, startup: StartUp) -> Stop:
    """One attempt on this rank: rendezvous, gate, restore, train. Heavy imports happen here, after the handlers are in place.

    Returns why it ended: ``Stop.NO`` where the run is complete or this job is back in the queue.
    """
    import torch
    import torch.distributed as dist

    from jobs import rendezvous
    from pipeline import trainer  # noqa: F401  imported here, so that what comes after is our own time

    startup.mark("imports")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    # Read once, by the first product: with it cuBLAS always adds in one order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    nodes, end = surroundings(run, place)
    number = run.claim_attempt() if place.world.rank == 0 else None
    store = rendezvous.join(run, place.world, place.key, place.address)
    startup.mark("rendezvous")
    if place.slurm:
        pass_gate(run, place, store, nodes)
        startup.mark("gate")
    took = run.last_took() if place.world.rank == 0 else {}
    attempt = Attempt(number, stop, Deadline(end, **took), startup, nodes)
    reason = train_on(run, place.world, attempt)
    if place.slurm and reason in (Stop.WARNED, Stop.TERMINATED):
        reason = come_back(run, place.world, reason)
    if dist.is_initialized():  # all have come this far; after a failure see ``leave_at_once``
        dist.destroy_process_group()
    return reason


def train_on(run: RunFolder, world: World, attempt: Attempt) -> Stop:
    """Train, and where that is rolled back, again as another attempt; ``trainer.rollback`` says how often."""
    import gc

    from pipeline.health import RolledBack

    while True:
        try:
            return train(run, world, attempt)
        except RolledBack:
            number = run.claim_attempt() if world.rank == 0 else None
            attempt = replace(attempt, number=number, startup=StartUp(time.time()))
        gc.collect()  # the weights of before: there may be no room for both


def train(run: RunFolder, world: World, attempt: Attempt) -> Stop:
    """Build what the config names and train it."""
    import torch

    from jobs.configs import load_frozen
    from models import registry
    from monitoring.stream import streaming
    from monitoring.system import watched
    from pipeline import checkpoint, rng
    from pipeline.distributed import make_fabric
    from pipeline.files import read_json
    from pipeline.manifest import read_manifest
    from pipeline.trainer import Trainer

    config = load_frozen(run.config_file)
    manifest = read_manifest(Path(read_json(run.launch_file)["data"]))
    fabric = make_fabric(config.trainer, world)
    torch.manual_seed(rng.key(config.seed, "initial weights"))
    module = registry.part(config.model, "train_module").TrainModule(config, manifest.info)
    if not checkpoint.steps(run.checkpoints):
        begin(run, config, module, attempt)
    attempt.startup.mark("model")
    uri = os.environ.get("MLFLOW_TRACKING_URI") if world.rank == 0 else None
    with watched(run, world), streaming(run, uri):
        return Trainer(run, config, module, manifest, fabric, world, attempt).fit()


def begin(run: RunFolder, config: RunConfig, module: TrainModule, attempt: Attempt) -> None:
    """Begin with the weights of the files and runs that the config names, and note which they are."""
    from jobs.planning import other_runs
    from pipeline import checkpoint

    files = module.load_pretrained()
    if files and attempt.number is not None:
        run.record("pretrained", files=files)
    others = {what: run.path.parent.parent / name for what, name in other_runs(config).items()}
    if others:
        steps = checkpoint.start(module, others)
        if attempt.number is not None:
            run.record(
                "started_from", runs={what: {"run": other_runs(config)[what], "step": s} for what, s in steps.items()}
            )


def surroundings(run: RunFolder, place: Place) -> tuple[tuple[str, ...], float | None]:
    """(the job's nodes by name, when its time ends), asked of SLURM by rank 0, which also notes the nodes that were lost before."""
    if not place.slurm or place.world.rank != 0:
        return (), None
    from jobs.nodes import note_lost
    from jobs.slurm_state import end_of, host_names, job_facts

    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        note_lost(run)
    return host_names(os.environ["SLURM_JOB_NODELIST"]), end_of(job_facts(os.environ["SLURM_JOB_ID"]))


def pass_gate(run: RunFolder, place: Place, store: Any, nodes: tuple[str, ...]) -> None:
    """Let sound nodes pass; the others get on the exclude list, and the failed job comes back without them."""
    from jobs.gate import BadNode, gate
    from jobs.nodes import exclude

    world = place.world
    names = {rank: nodes[rank // world.local_size] for rank in range(world.size)} if len(nodes) == world.nodes else {}
    try:
        figures = gate(world, store, place.key, place.address, names)
    except BadNode as bad:
        if world.rank == 0:
            for node, why in bad.nodes.items():
                exclude(run.path.parent.parent, node, why, run)
                run.record("node_excluded", node=node, why=why)
        else:
            time.sleep(WRITTEN_DOWN)
        raise
    if world.rank == 0:
        spoken = {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(("NCCL_", "TORCH_NCCL_", "TORCH_FR_", "GLOO_"))
        }
        print(f"network: {spoken}", file=sys.stderr)
        print(f"gate: {world.size} process(es) on {world.nodes} node(s) passed: {figures}", file=sys.stderr, flush=True)


def come_back(run: RunFolder, world: World, reason: Stop) -> Stop:
    """After the collective save: rank 0 sends the job back into the queue, and all leave together.

    Nobody leaves before it is back, or it would count as completed. Returns ``Stop.NO`` where it is back, else ``reason``: then the
    batch script gives the last word, and a job that was cancelled stays so.
    """
    import torch.distributed as dist

    from jobs.requeue import must_come_back, requeue
    from jobs.slurm_state import job_facts

    if world.rank == 0 and (reason is Stop.WARNED or must_come_back(job_facts(os.environ["SLURM_JOB_ID"]))):
        reason = Stop.NO if requeue(run, reason.words) else reason
    if world.size > 1:
        dist.barrier()
    return reason if world.rank == 0 else Stop.NO


@dataclass(frozen=True)
class Place:
    """This process among its peers. ``key``: of this attempt, the same on all ranks. ``address``: of this host, for the other ranks."""

    world: World
    key: str
    address: str = "127.0.0.1"
    slurm: bool = False


def where_am_i() -> Place:
    """From the launcher's or SLURM's environment."""
    env = os.environ
    if "SLURMPHONY_LAUNCH" in env:
        size = int(env["WORLD_SIZE"])
        return Place(World(int(env["RANK"]), size, int(env["RANK"]), size, 0), env["SLURMPHONY_LAUNCH"])
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
        return Place(world, key, env.get("SLURMD_NODENAME") or socket.gethostname(), slurm=True)
    return Place(World(), "alone")


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
