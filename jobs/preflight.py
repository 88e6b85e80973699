"""What can be known wrong before anything is queued: every problem in one list, not the first only."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from jobs.clusters import Cluster
from jobs.configs import ROOT, prepare_command
from jobs.planning import Plan, say
from models.codecs import ANALYTIC, check_codec
from models.codecs.weights import ENVIRONMENT, fetch_command, find_weights
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.manifest import Manifest

SAMPLED = 16  # samples that are read and checked, each from another shard while there are enough
INODES = 1000  # of a run: code, metrics, samples, logs, checkpoints
GIB = float(1 << 30)


def problems(plan: Plan, *, thorough: bool) -> list[str]:
    """One sentence a problem; empty where the run can start.

    Args:
        thorough: also what takes seconds: read from the data, build the model once to know its size.
    """
    found = batch_problems(plan.config, plan.world_size)
    runs = plan.run.path.parent.parent
    found += permission_problems(runs) + strategy_problems(plan.config, plan.world_size)
    if found or not thorough:
        return found
    if plan.manifest:
        found += data_problems(plan.manifest, plan.config) + plan.config.model.data_problems(plan.manifest.info)
    found += weights_problems(plan.config, plan.where.cluster)
    new = not plan.run.history_file.exists()
    queued = plan.where.cluster.scheduler == "slurm"
    size = sizes(plan) if new and queued else None  # an old run has shown that it fits, and here one sees at once
    found += space_problems(runs, plan.config, checkpoint_bytes(size) if size else 0)
    if size:
        found += memory_problems(plan.config, plan.where.cluster, plan.world_size, size)
    return found


def batch_problems(config: RunConfig, world_size: int) -> list[str]:
    batch = config.data.batch_size
    if batch % world_size == 0:
        return []
    divisors = [str(n) for n in range(1, min(batch, 64) + 1) if batch % n == 0]
    return [
        f"the global batch (data.batch_size = {batch}) does not divide by {world_size} processes; "
        f"use {', '.join(divisors)} processes, or --set data.batch_size={-(-batch // world_size) * world_size}."
    ]


def permission_problems(runs: Path) -> list[str]:
    place = existing(runs)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    return [f"no permission to write in {place}; choose a folder for runs with --runs or SLURMPHONY_RUNS."]


def strategy_problems(config: RunConfig, world_size: int) -> list[str]:
    if config.trainer.strategy != "deepspeed" or world_size == 1 or importlib.util.find_spec("deepspeed"):
        return []
    return ["DeepSpeed is not installed here; on Linux make setup installs it, or launch with --strategy ddp."]


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    while not os.path.exists(path):  # noqa: PTH110  Path.exists raises where a parent may not be searched
        path = path.parent
    return path


def data_problems(manifest: Manifest, config: RunConfig) -> list[str]:
    """Every shard there with its size, and a few samples read against their checksums."""
    from pipeline.shards import DamagedSample, ShardReader  # late: NumPy is a fifth of the time that a launch takes

    again = f"{prepare_command(config)} --out {manifest.folder.parent}"
    sizes_of = {s.name: manifest.folder / f"{s.name}.tar" for s in manifest.shards}
    missing = [name for name, path in sizes_of.items() if not path.is_file()]
    if missing:
        return [
            f"{len(missing)} of {len(sizes_of)} shards are missing in {manifest.folder} ({missing[0]}.tar); make them again: {again}"
        ]
    filled = [s for s in manifest.shards if s.samples]
    rng = random.Random()
    bad = []
    for shard in rng.sample(filled, min(SAMPLED, len(filled))):
        reader = None
        try:
            reader = ShardReader(manifest.folder, shard)
            reader.read(rng.randrange(shard.samples))
        except (DamagedSample, OSError) as error:
            bad.append(str(error))
        finally:
            if reader:
                reader.close()
    if not bad:
        return []
    return [
        f"the data is damaged in {len(bad)} of {min(SAMPLED, len(filled))} places looked at ({bad[0]}); repair it: {again}"
    ]


def weights_problems(config: RunConfig, cluster: Cluster) -> list[str]:
    """A run on latents decodes what it samples: its codec's weights must be where the job will look for them, with their sizes."""
    codec = config.data.codec
    given = os.environ.get(ENVIRONMENT) or cluster.weights
    try:
        if codec is None:
            return []
        check_codec(codec)
        if codec in ANALYTIC:
            return []
        weights = find_weights(codec, Path(given) if given else None)
    except UserError as error:
        return [str(error)]
    again = f"type {fetch_command(codec, weights.folder.parent)} on a machine with internet"
    paths = {weights.folder / file.path: file.size for file in weights.files}
    return [
        f"{path} is missing or cut off; {again}: it mends what is wrong."
        for path, size in paths.items()
        if not path.is_file() or path.stat().st_size != size
    ]


# -- the model's size ---------------------------------------------------------------------------------------------------


def sizes(plan: Plan) -> dict[str, int] | None:
    """Parameters and bytes of one step, measured by ``jobs.describe`` in a process of its own: torch stays out of this one."""
    say("measuring the model's size (a few seconds; --no-preflight does without)...")
    words = [sys.executable, "-m", "jobs.describe", "--json"]
    tree = {"config": plan.config.model_dump(mode="json"), "data": str(plan.manifest.folder) if plan.manifest else None}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, input=json.dumps(tree), capture_output=True, text=True, env=env, cwd=ROOT)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        say(f"note: the model's size could not be measured, so space and memory are not checked ({reason})")
        return None
    return json.loads(done.stdout)


def checkpoint_bytes(size: dict[str, int]) -> int:
    return size["saved"] + size["optimizer"] + size["ema"]


def space_problems(runs: Path, config: RunConfig, one_checkpoint: int) -> list[str]:
    """Room for the checkpoints that are kept and the one being written, on the disk and within the user's quota."""
    keep, place = config.trainer.keep, existing(runs)
    kept = keep.last + keep.best + (config.trainer.max_steps // keep.every if keep.every else 0) + 1
    needed = kept * one_checkpoint
    disk = os.statvfs(place)
    room = {"disk": (disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None), **quotas(place)}
    found = []
    for name, (free, files) in room.items():
        if free is not None and free < needed:
            found.append(
                f"{kept} checkpoints of {one_checkpoint / GIB:.1f} GiB need {needed / GIB:.1f} GiB, {place} ({name}) has "
                f"{free / GIB:.1f} GiB left; make room, use --runs, or keep fewer with --set trainer.keep.last=1."
            )
        if files is not None and files < INODES:
            found.append(
                f"{place} ({name}) takes only {files} more files and a run needs about {INODES}; remove some, or use --runs."
            )
    return found


def quotas(place: Path) -> dict[str, tuple[int | None, int | None]]:
    """(bytes, files) that are left by Lustre's quota for the user; empty where there is no Lustre or no limit."""
    if shutil.which("lfs") is None:
        return {}
    done = subprocess.run(["lfs", "quota", "-q", "-u", getpass.getuser(), str(place)], capture_output=True, text=True)
    # The path, then used, quota, limit and grace in KiB, and again in files; what is over its quota bears a star.
    words = [word.rstrip("*") for word in done.stdout.split()[-8:]]
    if done.returncode or len(words) != 8 or not all(words[i].isdigit() for i in (0, 1, 2, 4, 5, 6)):
        return {}
    (used, soft, hard), (files, soft_files, hard_files) = (map(int, words[i : i + 3]) for i in (0, 4))
    left = [
        max(0, limit - there) if limit else None
        for limit, there in ((hard or soft, used), (hard_files or soft_files, files))
    ]
    return {"your quota": (None if left[0] is None else left[0] * 1024, left[1])}


def memory_problems(config: RunConfig, cluster: Cluster, world_size: int, size: dict[str, int]) -> list[str]:
    """Weights, gradients, optimizer and average, and what a backward needs of the micro-batch, against one GPU."""
    if cluster.gpu_memory_gib is None:
        return []
    share = config.data.batch_size // world_size
    micro = min(config.trainer.micro_batch or share, share)
    fixed = size["weights"] + size["gradients"] + size["optimizer"] + size["ema"]
    available = cluster.gpu_memory_gib * GIB * 0.95  # the CUDA context and what fragments
    if fixed + micro * size["activations_per_sample"] <= available:
        return []
    fits = int((available - fixed) // max(1, size["activations_per_sample"]))
    advice = (
        f"use --set trainer.micro_batch={fits} (the gradients are accumulated, the result is the same)"
        if fits >= 1
        else "use --strategy deepspeed, or a smaller model"
    )
    if not config.trainer.activation_checkpointing:
        advice += ", or --set trainer.activation_checkpointing=true (less memory, more time, the same result)"
    total = (fixed + micro * size["activations_per_sample"]) / GIB
    return [
        f"a step of {micro} samples a GPU needs about {total:.0f} GiB and a GPU has {cluster.gpu_memory_gib:.0f} GiB; {advice}."
    ]
