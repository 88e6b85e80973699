"""Sweeps: ``--grid key=a,b --grid other=c,d`` is one run for each choice, on SLURM one array; again, it starts only what is missing."""

from __future__ import annotations

import argparse
import itertools

from jobs.planning import Plan, Where, plan_named, prepare_folder, say
from jobs.preflight import problems
from jobs.start import Link, already_there, dry_run, preflight, refuse, request_of, start
from pipeline.errors import UserError


def choices(grid: list[str]) -> list[list[str]]:
    """``["a=1,2", "b=x"]`` -> ``[["a=1", "b=x"], ["a=2", "b=x"]]``; UserError where one is no ``key=value,value``."""
    axes = []
    for text in grid:
        key, equals, values = text.partition("=")
        listed = [v.strip() for v in values.split(",")]
        if not equals or not key or not all(listed):
            raise UserError(f"--grid takes key=a,b,c, not '{text}'; for example --grid optimizer.lr=1e-3,3e-4.")
        axes.append([f"{key}={value}" for value in listed])
    return [list(choice) for choice in itertools.product(*axes)]


def launch_grid(args: argparse.Namespace, where: Where) -> int:
    """Plan every run of the grid, start those that are neither complete nor under way; prints every run folder."""
    plans = [
        plan_named(args.name, [*args.overrides, *choice], where, new=False, dry=args.dry_run)
        for choice in choices(args.grid)
    ]
    same = len(plans) - len({plan.run.path for plan in plans})
    if same:
        raise UserError(
            f"{same} runs of this grid are the same as others of it; a key of the budget does not make another run."
        )
    missing = [plan for plan in plans if already_there(plan, args) is None]
    say(f"{len(plans)} runs, {len(missing)} to start.")
    links = _start(missing, args) if missing else []
    for plan in plans:
        print(plan.run.path)
    return max((link.code for link in links), default=0)


def _start(plans: list[Plan], args: argparse.Namespace) -> list[Link]:
    where = plans[0].where
    if args.dry_run and where.cluster.scheduler == "local":
        return [dry_run(plan, args, None) for plan in plans]
    if where.cluster.scheduler == "local":
        return [start(plan, args, None) for plan in plans]
    from jobs.slurm import Batch, script, submit

    request = request_of(plans[0], args, None)
    if args.dry_run:
        refuse([sentence for plan in plans for sentence in problems(plan, thorough=False)])
        print(script([plan.run for plan in plans], where.cluster, request))
        return []
    preflight(plans[0], args, None)  # they differ in what a grid varies, not in what a cluster refuses
    for plan in plans:
        prepare_folder(plan, None)
    runs = [plan.run for plan in plans]
    jobs = submit(runs, where.cluster_name, where.cluster, request)
    for run, job in zip(runs, jobs, strict=True):
        logs = Batch(tuple(runs)).logs
        run.record("queued", job_id=job, cluster=where.cluster_name, after_job=None, logs=str(logs))
    say(f"{len(jobs)} runs queued as array {jobs[0].partition('_')[0]}.")
    return []
