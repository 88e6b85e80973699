"""A link of a chain that makes data: the pairs that a run draws, here or as a job that waits for the run.

Never imports torch before it draws.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs import snapshot
from jobs.configs import ROOT, PairsLink
from jobs.planning import Chain, Where, say
from jobs.start import Link, handle
from models.cqtml.config import PairsConfig
from pipeline.errors import RunFailed, UserError
from pipeline.files import read_lines
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.runs import RunFolder

PEOPLE = "people"


@dataclass(frozen=True)
class PairsJob:
    """Draws pairs on a node; at the time limit it goes back into the queue. ``section``: a ``PairsConfig`` as JSON."""

    path: Path
    section: str
    data_root: str | None
    workers: int

    def __call__(self) -> str:
        from jobs.prepare_job import comes_back_at_the_limit  # late, as all that brings NumPy: a launch reads this

        run = RunFolder(self.path)
        try:
            with comes_back_at_the_limit(run.pairs):
                make_here(run, PairsConfig.model_validate_json(self.section), self.workers, self.data_root)
        except (UserError, RunFailed, OSError) as error:
            print(f"failed: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        return "complete"


def make_here(run: RunFolder, section: PairsConfig, workers: int, data_root: str | None) -> None:
    """Draw what is missing, and say so."""
    from jobs.pairs import make_pairs  # late: it brings NumPy, and later torch

    manifest = make_pairs(run, section, workers, data_root)
    by_split = ", ".join(f"{manifest.samples(split)} {split}" for split in ("train", "valid", "test"))
    say(f"{run.name}: pairs in {manifest.folder} ({by_split}); chosen in by {', '.join(raters(run)) or 'nobody yet'}.")


def launch_pairs(link: PairsLink, args: argparse.Namespace, where: Where, chain: Chain, wait_for: str | None) -> Link:
    """Draw the pairs of ``link`` here, or queue a job for it that waits for ``wait_for``. ``Link.job``: who draws them."""
    run = chain.find(link.pairs.of, where.runs_root, "pairs.of")
    section = link.pairs.model_copy(update={"of": run.name})
    if args.dry_run:
        place = "here" if where.cluster.scheduler == "local" else f"by a job after {wait_for or 'nobody'}"
        print(f"# would draw {section.count} pairs {place}, in {run.pairs}")
        return Link(run, 0, wait_for)
    if where.cluster.scheduler == "local":
        make_here(run, section, os.cpu_count() or 1, where.data)
        return Link(run, 0)
    return _queue(run, section, args, where, wait_for)


def raters(run: RunFolder) -> list[str]:
    """Who has chosen in the run's pairs."""
    return [path.stem for path in sorted(run.choices.glob("*.jsonl"))]


def are_drawn(run: RunFolder, section: PairsConfig) -> bool:
    """Whether ``section``'s pairs are there, by the newest weights, and the scripted judge has chosen in all where it is to."""
    from jobs.pairs import JUDGE, newest_weights

    folder = run.pairs
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder)
    weights = newest_weights(run)
    drawn = {"weights": weights, "count": section.count, "seed": section.seed}
    other = any(manifest.info[name] != value for name, value in drawn.items())
    if weights is None or other or manifest.info["temperatures"] != list(section.temperatures):
        return False
    lines, _ = read_lines(run.choices / f"{JUDGE}.jsonl")
    judged = {line["pair"] for line in lines if line["pair"].endswith(weights[:8])}
    return section.raters == PEOPLE or len(judged) >= sum(shard.samples for shard in manifest.shards)


def how_to_go_on(run: RunFolder, rest: list[str]) -> str:
    """What people do next, where a chain stops for them."""
    command = " --then ".join(rest)
    launch = f", then: python jobs/launch.py {command}" if rest else ""
    return f"the chain stops here for people to choose: python monitoring/compare.py {handle(run)}{launch}"


def _queue(run: RunFolder, section: PairsConfig, args: argparse.Namespace, where: Where, wait_for: str | None) -> Link:
    from jobs.side_jobs import SideJob, living, queue

    if wait_for is None and are_drawn(run, section):
        say(f"{run.name}: its {section.count} pairs are drawn.")
        return Link(run, 0)
    name = f"pairs_{run.path.name}"
    if job := living(name):
        say(f"{run.name}: its pairs are being drawn by job {job}.")
        return Link(run, 0, job)
    cluster = where.cluster
    records = run.path / "pairs_jobs"
    snapshot.take(ROOT, records / "code")
    work = PairsJob(run.path, section.model_dump_json(), where.data, cluster.cpus_per_gpu)
    after = f"afterok:{wait_for}" if wait_for else None
    side = SideJob(
        name,
        f"{run.name} pairs",
        records,
        where.cluster_name,
        args.time,
        cluster.cpus_per_gpu,
        on_gpu=True,
        after=after,
    )
    job = queue(work, side)
    say(f"{section.count} pairs of {run.name} queued as job {job}{f', after {wait_for} succeeds' if wait_for else ''}.")
    return Link(run, 0, job)
