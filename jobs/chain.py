"""A chain of launches: each link waits for the one before, and takes from it what only it can give.

A training whose data a link before it makes cannot be planned before they are there: its identity holds their hash. On SLURM such a link,
and all behind it, is launched by a small job when its turn comes; here the links are gone through one after the other anyway. Typed again,
a chain goes on from where it stands, because each of its links does.
"""

from __future__ import annotations

import argparse

from jobs.configs import PairsLink, data_root, find_data, load_link
from jobs.pairs_link import PEOPLE, how_to_go_on, launch_pairs
from jobs.planning import Chain, Where, plan_named, plan_resume, say
from jobs.start import Link, launch
from pipeline.errors import UserError
from pipeline.runs import RunFolder, find_run


def launch_chain(args: argparse.Namespace, where: Where) -> Link:
    """Launch every link of ``args``, or queue who will; the last one that was."""
    check_chain(args, where)
    chain, link, drawing = _given(args, where), None, None
    names: list[str | None] = [args.name, *args.then]
    for number, name in enumerate(names):
        rest = [each for each in names[number:] if each is not None]
        if link is not None and name and _waits_for_data(name) and (drawing or _launcher(link, args, where)):
            return _launch_later(rest, chain, args, where, link)
        link = _launch_link(name, args, where, chain, link)
        if link.code:
            return link
        if name:
            chain = chain.after(name, link.run)
            pairs = load_link(name, args.overrides if number == 0 else ())
            if isinstance(pairs, PairsLink):
                drawing = link.job
                if pairs.pairs.raters == PEOPLE and not args.dry_run:
                    say(how_to_go_on(link.run, rest[1:]))
                    return link
    assert link is not None
    return link


def check_chain(args: argparse.Namespace, where: Where) -> None:
    """UserError for a link whose config or data is wrong, before the first one is queued or has trained for days."""
    for name in args.then:
        config = load_link(name)
        if not args.dry_run and not isinstance(config, PairsLink) and config.data.of is None:
            find_data(config, data_root(where.data or where.cluster.data))


def _launch_link(name: str | None, args: argparse.Namespace, where: Where, chain: Chain, before: Link | None) -> Link:
    """``--set`` speaks of the first link of a chain; the others are what their configs say."""
    wait_for = before.job if before else None
    if name is None:
        return launch(plan_resume(args.resume, args.overrides, where), args, wait_for)
    overrides = args.overrides if before is None else []
    config = load_link(name, overrides)
    if isinstance(config, PairsLink):
        return launch_pairs(config, args, where, chain, wait_for)
    return launch(plan_named(name, overrides, where, chain, new=args.new, dry=args.dry_run), args, wait_for)


def _waits_for_data(name: str) -> bool:
    config = load_link(name)
    return not isinstance(config, PairsLink) and config.data.of is not None


def _given(args: argparse.Namespace, where: Where) -> Chain:
    """The chain that ``--use NAME=RUN`` begins with."""
    runs: dict[str, RunFolder] = {}
    for text in args.use:
        name, equals, run = text.partition("=")
        if not equals or not name or not run:
            raise UserError(f"--use takes NAME=RUN, not '{text}'; for example --use cqtml=cqtml/1f3a9c2e.")
        runs[name] = find_run(run, where.runs_root)
    return Chain(runs=runs)


def _launch_later(names: list[str], chain: Chain, args: argparse.Namespace, where: Where, before: Link) -> Link:
    """Queue a small job that launches the links ``names`` when ``before`` has succeeded."""
    words = [names[0], *(word for name in names[1:] for word in ("--then", name)), "--cluster", where.cluster_name]
    words += ["--nodes", str(where.nodes), "--gpus", str(where.width), "--runs", str(where.runs_root)]
    for option, value in (("--data", where.data), ("--time", args.time)):
        words += [option, value] if value else []
    words += [word for name, run in chain.runs.items() for word in ("--use", f"{name}={run.name}")]
    shown = " then ".join(names)
    if args.dry_run:
        print(f"# a small job after that would type: launch.py {' '.join(words)}")
        return before
    from jobs.side_jobs import SideJob, queue_launch

    job = _launcher(before, args, where)
    if job is None:
        name = _launcher_name(before)
        side = SideJob(
            name, f"launch {shown}", before.run.path / "pairs_jobs", where.cluster_name, after=f"afterok:{before.job}"
        )
        job = queue_launch([*words, *(["--no-preflight"] if args.no_preflight else [])], side)
    when = f", after {before.job} succeeds" if before.job else ""
    say(f"{shown} will be launched by job {job}{when}: their data are made by then.")
    return Link(before.run, 0, job)


def _launcher(before: Link, args: argparse.Namespace, where: Where) -> str | None:
    """The small job that waits behind ``before``'s run, where there is one already."""
    if where.cluster.scheduler == "local" or args.dry_run:
        return None
    from jobs.side_jobs import living  # late: submitit takes its time

    return living(_launcher_name(before))


def _launcher_name(before: Link) -> str:
    return f"launch_{before.run.path.name}"
