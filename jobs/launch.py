"""Start, resume or extend a training run: ``python jobs/launch.py NAME --nodes 1 --gpus 4``.

Launching the same config again finds the same run: it goes on from where it stands, or says that it is complete or running. This path
never imports torch: on a login node every answer and every error comes in well under a second.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import snapshot
from jobs.clusters import Cluster, choose_cluster, load_cluster
from jobs.configs import ROOT, data_root, find_data, load_frozen, load_named, runs_root
from jobs.preflight import problems
from jobs.slurm_state import living_job
from pipeline.config import RunConfig, differences, identity_of
from pipeline.errors import UserError, run_command
from pipeline.files import read_json, write_atomic, write_json
from pipeline.runs import RunFolder, find_run
from pipeline.shards import Manifest

ATTACHED_SECONDS = 2.0  # between two looks at a run that runs elsewhere


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python jobs/launch.py",
        description="Start, resume or extend a training run.",
        epilog="The run folder's path is the last line on stdout. Exit 0: done; 1: it ran and failed; 2: your mistake.",
    )
    parser.add_argument("name", nargs="?", help="a file in configs/, without .yaml")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with a run (folder, name or config), possibly with changed --set values"
    )
    parser.add_argument(
        "--checkpoint",
        type=int,
        metavar="STEP",
        help="with --resume: go back to this step first; later ones are kept aside",
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="per node; one process each (local without GPUs: CPU processes)"
    )
    parser.add_argument(
        "--cluster", metavar="NAME", help="a file in configs/clusters/; left out: SLURM where sbatch is, else local"
    )
    parser.add_argument("--time", metavar="H:MM:SS", help="time limit on SLURM; default: the profile's")
    parser.add_argument("--strategy", choices=("ddp", "deepspeed"), help="short for --set trainer.strategy=...")
    parser.add_argument("--data", metavar="DIR", help="data root; default: SLURMPHONY_DATA, the profile's, or data/")
    parser.add_argument(
        "--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS, the profile's, or runs/"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--new", action="store_true", help="make a sibling of a run that exists already")
    parser.add_argument("--dry-run", action="store_true", help="print what would be queued and make nothing")
    parser.add_argument("--wait", action="store_true", help="stay until the run ends, also when it runs elsewhere")
    parser.add_argument(
        "--no-preflight", action="store_true", help="do not check the data, the space and the permissions first"
    )
    args = parser.parse_args(words)
    if (args.name is None) == (args.resume is None):
        raise UserError(
            "say what to launch: a config's name (python jobs/launch.py dismix_demo), or --resume RUN, one of the two."
        )
    if args.checkpoint is not None and args.resume is None:
        raise UserError("--checkpoint goes with --resume RUN: it says to which step that run goes back.")
    for flag in ("nodes", "gpus"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be at least 1, not {getattr(args, flag)}.")
    if args.strategy:
        args.overrides.append(f"trainer.strategy={args.strategy}")
    return args


@dataclass(frozen=True)
class Plan:
    """A run that is to go on: on which machine, how wide, and what of its config changes."""

    run: RunFolder
    config: RunConfig
    manifest: Manifest | None  # None only in a dry run on a machine without the data
    cluster_name: str
    cluster: Cluster
    nodes: int
    gpus: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    cluster_name, why = choose_cluster(args.cluster, dry_run=args.dry_run)
    cluster = load_cluster(cluster_name)
    say(f"cluster: {cluster_name} ({why})")
    if cluster.scheduler == "local" and args.nodes > 1:
        raise UserError(f"--nodes {args.nodes} needs SLURM; on this machine there is one node: leave --nodes out.")
    plan = plan_resume(args, cluster_name, cluster) if args.resume else plan_named(args, cluster_name, cluster)
    found = [] if args.no_preflight else problems(plan.config, plan.world_size, plan.run.path.parent.parent)
    if found:
        raise UserError("\n".join(found))
    if args.dry_run:
        return dry_run(plan, args)
    code = already_there(plan, args)
    if code is not None:
        return code
    prepare_folder(plan, args)
    return start(plan, args)


def width(args: argparse.Namespace, cluster: Cluster) -> int:
    """Processes a node: what was asked, else the profile's GPUs, else (local) this machine's GPUs or one CPU process."""
    if args.gpus:
        return args.gpus
    if cluster.scheduler == "slurm":
        return cluster.gpus_per_node
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def plan_named(args: argparse.Namespace, cluster_name: str, cluster: Cluster) -> Plan:
    config = load_named(args.name, args.overrides)
    config = resolve_start(config, runs_root(args.runs or cluster.runs))
    manifest = None
    root = data_root(args.data or cluster.data)
    try:
        manifest = find_data(config, root)
    except UserError as error:
        if not args.dry_run:
            raise
        say(f"note: {error}\nnote: without the data the run's identity below is provisional.")
    identity = identity_of(config, manifest.identity if manifest else "no data")
    run = RunFolder(runs_root(args.runs or cluster.runs) / args.name / identity)
    if args.new and run.path.exists():
        taken = [int(p.name.partition("-")[2] or 1) for p in run.path.parent.glob(f"{identity}*")]
        run = RunFolder(run.path.with_name(f"{identity}-{max(taken) + 1}"))
    if run.config_file.is_file():  # its own config goes on, with this launch's budget
        config = merge_budget(load_frozen(run.config_file), config)
    return Plan(run, config, manifest, cluster_name, cluster, args.nodes, width(args, cluster))


def resolve_start(config: RunConfig, runs: Path) -> RunConfig:
    """``init_from`` as the folder of a run, so that the frozen config says exactly which."""
    if config.init_from is None:
        return config
    return config.model_copy(update={"init_from": str(find_run(config.init_from, runs).path)})


def merge_budget(frozen: RunConfig, asked: RunConfig) -> RunConfig:
    """The frozen config with the budget and host facts that were asked for now: they are not part of a run's identity."""
    data = frozen.data.model_copy(update={"workers": asked.data.workers})
    kept = {"precision", "strategy", "grad_clip", "ema"}
    budget = {k: getattr(asked.trainer, k) for k in type(asked.trainer).model_fields if k not in kept}
    return frozen.model_copy(update={"data": data, "trainer": frozen.trainer.model_copy(update=budget)})


def plan_resume(args: argparse.Namespace, cluster_name: str, cluster: Cluster) -> Plan:
    run = find_run(args.resume, runs_root(args.runs or cluster.runs))
    old = load_frozen(run.config_file)
    config = load_frozen(run.config_file, args.overrides)
    refuse_other_run(run, old, config)
    data = Path((read_json(run.launch_file) or {}).get("data", ""))
    manifest = find_data(config, data_root(args.data) if args.data else data.parent)
    trained_on = next((e["data"] for e in reversed(run.history()) if e["event"] == "attempt"), manifest.identity)
    if manifest.identity != trained_on:
        raise UserError(
            f"{manifest.folder} is not the data that {run.name} was trained on; point --data at that, or launch a new run."
        )
    return Plan(run, config, manifest, cluster_name, cluster, args.nodes, width(args, cluster))


def refuse_other_run(run: RunFolder, old: RunConfig, new: RunConfig) -> None:
    """A run may change its loss weights, learning rate, schedules and budget; another architecture or other data is another run."""
    changed = differences(old, new)
    live = {f"model.{name}" for name in type(new.model).live} | {"data.workers"}
    fixed = {"optimizer.name", "trainer.strategy"}
    refused = {
        k: v
        for k, v in changed.items()
        if k not in live and (k in fixed or not k.startswith(("trainer.", "optimizer.")))
    }
    if refused:
        shown = "; ".join(f"{key}: {before!r} -> {after!r}" for key, (before, after) in refused.items())
        raise UserError(
            f"{run.name} cannot go on with another architecture, data or seed ({shown}); "
            f"launch a new run instead: python jobs/launch.py {run.path.parent.name} --set ..."
        )


def dry_run(plan: Plan, args: argparse.Namespace) -> int:
    if plan.cluster.scheduler == "local":
        print(f"# would run here, {plan.world_size} process(es), in {plan.run.path}")
    else:
        from jobs.slurm import Request, script

        print(script(plan.run, plan.cluster, Request(plan.nodes, plan.gpus, args.time)))
    print(plan.run.path)
    return 0


def already_there(plan: Plan, args: argparse.Namespace) -> int | None:
    """Exit code where there is nothing to start: the run is complete, or is being written to now."""
    run = plan.run
    if not run.history_file.exists():
        return None
    deadline = time.monotonic() + 3  # ranks that lost their launcher need a moment to notice
    while (writer := run.writer()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if writer:
        at = run.heartbeat() or {}
        say(
            f"{run.name} is running on {writer['host']} (process {writer['pid']}), step {at.get('step', '?')}/{at.get('total', '?')}."
        )
        return attach_or_tell(run, args)
    if queued := living_job(run):
        say(f"{run.name} is queued as job {queued[0]}: {queued[1]}.")
        return attach_or_tell(run, args)
    end = run.last_end()
    rewinding = args.checkpoint is not None
    if end and end["reason"] == "complete" and end["step"] >= plan.config.trainer.max_steps and not rewinding:
        say(f"{run.name} is complete at step {end['step']}.")
        say(
            f"next: python jobs/evaluate.py {run.name}, or go on with --set trainer.max_steps=..., or --new for another run."
        )
        print(run.path)
        return 0
    return None


def attach_or_tell(run: RunFolder, args: argparse.Namespace) -> int:
    if args.wait:
        return attach(run)
    say("--wait stays until it ends.")
    print(run.path)
    return 0


def attach(run: RunFolder) -> int:
    """Follow a run that runs or waits elsewhere until it ends; 0 where it is complete then."""
    told = ""
    while (queued := living_job(run)) or run.writer():
        at = run.heartbeat() or {}
        state = f"job {queued[0]} {queued[1]}" if queued else "running"
        line = f"{run.name}: {state}, step {at.get('step', '?')}/{at.get('total', '?')}"
        if line != told:
            say(line)
        told = line
        time.sleep(ATTACHED_SECONDS)
    print(run.path)
    end = run.last_end()
    return 0 if end and end["reason"] == "complete" else 1


def prepare_folder(plan: Plan, args: argparse.Namespace) -> None:
    """Make or update the run folder: frozen config, code snapshot, what changed, and the step to go back to."""
    assert plan.manifest is not None
    run = plan.run
    new = not run.history_file.exists()
    try:
        run.create()
    except OSError as error:
        raise UserError(
            f"{run.path} cannot be made: {error.strerror}; choose a folder for runs with --runs."
        ) from error
    if new:
        run.record("created", config=plan.config.model_dump(mode="json"))
    elif changed := differences(load_frozen(run.config_file), plan.config):
        at = (run.steps() or [0])[-1]
        run.record("changed", after_step=at, changes={key: {"from": a, "to": b} for key, (a, b) in changed.items()})
        say("changed: " + ", ".join(f"{key} {a!r} -> {b!r}" for key, (a, b) in changed.items()))
    if args.checkpoint is not None:
        rewind(run, args.checkpoint)
    write_atomic(run.config_file, plan.config.to_yaml().encode())
    taken = snapshot.take(ROOT, run.code)
    last = next((e for e in reversed(run.history()) if e["event"] == "code"), None)
    if last is None or last["hash"] != taken.hash:
        run.record(
            "code", hash=taken.hash, commit=taken.commit, uncommitted_changes=taken.changed, left_out=taken.left_out
        )
    host = {"data": str(plan.manifest.folder), "cluster": plan.cluster_name, "nodes": plan.nodes, "gpus": plan.gpus}
    write_json(run.launch_file, host)


def rewind(run: RunFolder, step: int) -> None:
    """Set later checkpoints aside, so that the run goes on from ``step``; nothing is deleted."""
    present = run.steps()
    if step not in present:
        raise UserError(
            f"{run.name} has no checkpoint at step {step}; it has: {', '.join(map(str, present)) or 'none'}."
        )
    aside = run.path / "rewound" / time.strftime("%Y%m%d-%H%M%S")
    for later in (s for s in present if s > step):
        aside.mkdir(parents=True, exist_ok=True)
        folder = run.checkpoints / f"step_{later:09d}"
        folder.rename(aside / folder.name)
    run.record("rewound", to_step=step, kept_in=str(aside.relative_to(run.path)))


def start(plan: Plan, args: argparse.Namespace) -> int:
    run = plan.run
    if plan.cluster.scheduler == "slurm":
        from jobs.slurm import Request, submit

        job = submit(run, plan.cluster_name, plan.cluster, Request(plan.nodes, plan.gpus, args.time))
        run.record("queued", job_id=job, cluster=plan.cluster_name)
        say(f"{run.name} queued as job {job}; its log: {run.logs}/{job}_0_log.out")
        print(run.path)
        return attach(run) if args.wait else 0
    from jobs.local import run_local

    kind = "GPU" if any(Path("/dev").glob("nvidia[0-9]*")) else "CPU (gloo)"
    say(f"{run.name}: {plan.world_size} {kind} process(es) on this machine, in {run.path}")
    end = run_local(run, plan.world_size)
    if end["reason"] == "complete":
        say(f"{run.name} is complete at step {end['step']}. next: python jobs/evaluate.py {run.name}")
    else:
        say(f"{run.name} stopped at step {end['step']} ({end['reason']}); the same command goes on from there.")
    print(run.path)
    return 0 if end["reason"] == "complete" else 130


if __name__ == "__main__":
    run_command(main)
