"""Start one planned run, unless there is nothing to start: checked, then queued on SLURM or trained here; or only shown.

This path never imports torch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.planning import Plan, changes, gpus_here, prepare_folder, say, say_changes
from jobs.preflight import problems
from jobs.slurm_state import living_job
from pipeline.errors import UserError
from pipeline.runs import RunFolder, runs_root

if TYPE_CHECKING:
    from jobs.slurm import Request

INTERRUPTED = 130  # the shell's own exit code for Ctrl-C
ATTACHED_SECONDS = 2.0  # between two looks at a run that runs elsewhere


@dataclass(frozen=True)
class Link:
    """What became of one run of a chain. ``job``: its SLURM job while it is queued or running, for the next to wait for."""

    run: RunFolder
    code: int
    job: str | None = None


def launch(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> Link:
    """Start one run, unless there is nothing to do. ``wait_for``: the job that must succeed before."""
    if args.dry_run:
        refuse(problems(plan, thorough=False))
        return dry_run(plan, args, wait_for)
    return already_there(plan, args) or start(plan, args, wait_for)


def start(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> Link:
    """Check, make the run folder, then queue or train."""
    preflight(plan, args, wait_for)
    prepare_folder(plan, args.checkpoint)
    return queue(plan, args, wait_for) if plan.where.cluster.scheduler == "slurm" else train_here(plan)


def preflight(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> None:
    """Everything that can be known wrong now, in one list; without preflight only what no run could begin with."""
    found = problems(plan, thorough=not args.no_preflight)
    if plan.where.cluster.scheduler == "slurm" and not args.no_preflight:
        from jobs.slurm import trial

        found += trial([plan.run], plan.where.cluster_name, plan.where.cluster, request_of(plan, args, wait_for))
    refuse(found)


def refuse(found: list[str]) -> None:
    if found:
        raise UserError("\n".join(found))


def request_of(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> Request:
    from jobs.nodes import to_exclude
    from jobs.slurm import Request

    where = plan.where
    out = to_exclude(where.runs_root, where.cluster.partition, where.nodes)
    return Request(where.nodes, where.width, args.time, wait_for, tuple(out))


def dry_run(plan: Plan, args: argparse.Namespace, wait_for: str | None) -> Link:
    say_changes(changes(plan))
    if plan.where.cluster.scheduler == "local":
        print(f"# would run here, {plan.world_size} process(es), in {plan.run.path}")
        return Link(plan.run, 0)
    from jobs.slurm import script

    print(script([plan.run], plan.where.cluster, request_of(plan, args, wait_for)))
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
    if args.checkpoint is not None:
        return None
    asked, at_step = plan.config.trainer.max_steps, max(run.steps(), default=0)
    if end is None or end["reason"] != "complete" or end["step"] < asked:
        if at_step > asked:
            raise UserError(
                f"{run.name} stands at step {at_step}, and trainer.max_steps={asked} is behind it; ask for more steps, or go back: "
                f"python jobs/launch.py --resume {handle(run)} --checkpoint STEP."
            )
        return None
    say(f"{run.name} is complete at step {end['step']}.")
    say(
        f"next: python jobs/evaluate.py {handle(run)}, or go on with --set trainer.max_steps=..., or --new for another run."
    )
    return Link(run, 0)


def handle(run: RunFolder) -> str:
    """What names ``run`` to the other commands: its folder where they would look for its name elsewhere."""
    return run.name if run.path.parent.parent == runs_root(None) else str(run.path)


def attach(run: RunFolder) -> int:
    """Follow a run that runs or waits elsewhere until it ends; 0 where it is complete then. A controller may be silent for a while."""
    told = ""
    while True:
        try:
            queued = living_job(run)
        except UserError as error:
            if told != str(error):
                say(f"{error} Still waiting.")
            told = str(error)
            time.sleep(ATTACHED_SECONDS)
            continue
        if not queued and not run.writer():
            break
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
    from jobs.slurm import submit

    run, where = plan.run, plan.where
    (job,) = submit([run], where.cluster_name, where.cluster, request_of(plan, args, wait_for))
    run.record("queued", job_id=job, cluster=where.cluster_name, after_job=wait_for, logs=str(run.logs))
    say(
        f"{run.name} queued as job {job}{f', after {wait_for} succeeds' if wait_for else ''}; logs: {run.logs}/{job}_0_log.*"
    )
    return Link(run, attach(run) if args.wait else 0, job)


def train_here(plan: Plan) -> Link:
    from jobs.local import run_local

    run = plan.run
    kind = "GPU" if gpus_here() else "CPU (gloo)"
    say(f"{run.name}: {plan.world_size} {kind} process(es) on this machine, in {run.path}")
    end = run_local(run, plan.world_size)
    if end["reason"] == "complete":
        say(f"{run.name} is complete at step {end['step']}. next: python jobs/evaluate.py {handle(run)}")
        return Link(run, 0)
    say(f"{run.name} stopped at step {end['step']} ({end['reason']}); the same command goes on from there.")
    return Link(run, INTERRUPTED)
