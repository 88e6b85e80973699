"""Start, resume or extend a training run: ``python jobs/launch.py NAME --nodes 1 --gpus 4``.

Launching the same config again finds the same run: it goes on from where it stands, or says that it is complete or running. This path
never imports torch: on a login node every answer and every error comes in well under a second.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.clusters import choose_cluster, load_cluster
from jobs.planning import Plan, Where, plan_named, plan_resume, prepare_folder, say
from jobs.preflight import problems
from jobs.slurm_state import living_job
from pipeline.errors import UserError, run_command
from pipeline.runs import RunFolder

INTERRUPTED = 130  # the shell's own exit code for Ctrl-C
ATTACHED_SECONDS = 2.0  # between two looks at a run that runs elsewhere


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
    parser.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="NAME",
        help="queue NAME after this one succeeds (may be repeated)",
    )
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
class Link:
    """What became of one run of a chain. ``job``: its SLURM job while it is queued or running, for the next to wait for."""

    run: RunFolder
    code: int
    job: str | None = None


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    cluster_name, why = choose_cluster(args.cluster, dry_run=args.dry_run)
    where = Where(cluster_name, load_cluster(cluster_name), args.nodes, args.gpus, args.data, args.runs)
    say(f"cluster: {cluster_name} ({why})")
    if where.cluster.scheduler == "local" and args.nodes > 1:
        raise UserError(f"--nodes {args.nodes} needs SLURM; on this machine there is one node: leave --nodes out.")
    link = None
    for name in (args.name, *args.then):
        plan = plan_link(args, name, where, link)
        link = launch(plan, args, wait_for=link.job if link else None)
        if link.code:
            break
    assert link is not None
    print(link.run.path)
    return link.code


def plan_link(args: argparse.Namespace, name: str | None, where: Where, before: Link | None) -> Plan:
    """``--set`` speaks of the first run of a chain; the others are what their configs say."""
    if name is None:
        return plan_resume(args.resume, args.overrides, where)
    overrides = args.overrides if before is None else []
    previous = before.run if before else None
    return plan_named(name, overrides, where, previous=previous, new=args.new, dry=args.dry_run)


def launch(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> Link:
    """Check, then queue or train one run, unless there is nothing to do. ``wait_for``: the job that must succeed before."""
    found = [] if args.no_preflight else problems(plan.config, plan.world_size, plan.run.path.parent.parent)
    if found:
        raise UserError("\n".join(found))
    if args.dry_run:
        return dry_run(plan, args, wait_for)
    there = already_there(plan, args)
    if there is not None:
        return there
    prepare_folder(plan, args.checkpoint)
    return queue(plan, args, wait_for) if plan.where.cluster.scheduler == "slurm" else train_here(plan)


def dry_run(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> Link:
    if plan.where.cluster.scheduler == "local":
        print(f"# would run here, {plan.world_size} process(es), in {plan.run.path}")
        return Link(plan.run, 0)
    from jobs.slurm import Request, script

    request = Request(plan.where.nodes, plan.where.width, args.time, wait_for)
    print(script(plan.run, plan.where.cluster, request))
    return Link(plan.run, 0, "JOB_BEFORE")


def already_there(plan: Plan, args: argparse.Namespace) -> Link | None:
    """Where there is nothing to start: the run is complete, or is queued or being written to now."""
    run = plan.run
    if not run.history_file.exists():
        return None
    deadline = time.monotonic() + 3  # ranks that lost their launcher need a moment to notice
    while (writer := run.writer()) and time.monotonic() < deadline:
        time.sleep(0.1)
    queued = living_job(run)
    if writer or queued:
        at = run.heartbeat() or {}
        if queued:
            say(f"{run.name} is queued as job {queued[0]}: {queued[1]}.")
        if writer:
            place = f"on {writer['host']} (process {writer['pid']})"
            say(f"{run.name} is running {place}, step {at.get('step', '?')}/{at.get('total', '?')}.")
        if not args.wait:
            say("--wait stays until it ends.")
        return Link(run, attach(run) if args.wait else 0, queued[0] if queued else None)
    end = run.last_end()
    if end is None or end["reason"] != "complete" or args.checkpoint is not None:
        return None
    if end["step"] < plan.config.trainer.max_steps:
        return None
    say(f"{run.name} is complete at step {end['step']}.")
    say(
        f"next: python jobs/evaluate.py {run.name}, or go on with --set trainer.max_steps=..., or --new for another run."
    )
    return Link(run, 0)


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
    end = run.last_end()
    return 0 if end and end["reason"] == "complete" else 1


def queue(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> Link:
    from jobs.slurm import Request, submit

    run, where = plan.run, plan.where
    job = submit(run, where.cluster_name, where.cluster, Request(where.nodes, where.width, args.time, wait_for))
    run.record("queued", job_id=job, cluster=where.cluster_name, after_job=wait_for)
    say(
        f"{run.name} queued as job {job}{f', after {wait_for} succeeds' if wait_for else ''}; logs: {run.logs}/{job}_0_log.*"
    )
    return Link(run, attach(run) if args.wait else 0, job)


def train_here(plan: Plan) -> Link:
    from jobs.local import run_local

    run = plan.run
    kind = "GPU" if any(Path("/dev").glob("nvidia[0-9]*")) else "CPU (gloo)"
    say(f"{run.name}: {plan.world_size} {kind} process(es) on this machine, in {run.path}")
    end = run_local(run, plan.world_size)
    if end["reason"] == "complete":
        say(f"{run.name} is complete at step {end['step']}. next: python jobs/evaluate.py {run.name}")
        return Link(run, 0)
    say(f"{run.name} stopped at step {end['step']} ({end['reason']}); the same command goes on from there.")
    return Link(run, INTERRUPTED)


if __name__ == "__main__":
    run_command(main)
