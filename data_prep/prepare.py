"""Make shards of a dataset, or look at how far that is, or prove that they are intact.

    python data_prep/prepare.py DATASET --source DIR [--recipe R] [--codec C] [--out DIR] [--workers N] [--max-failures F]
    python data_prep/prepare.py DATASET [--recipe R] --codec C [--out DIR] [--workers N]
    python data_prep/prepare.py DATASET ... --cluster NAME [--tasks N] [--time H:MM:SS] [--then NAME] [--wait]
    python data_prep/prepare.py DATASET [--recipe R] [--codec C] [--out DIR] --status | --verify

The shards go to <data root>/<recipe>/; the data root is --out, else $SLURMPHONY_DATA, else the profile's (with --cluster), else data/.
With --codec, latents are made of those shards in <data root>/<recipe>-<codec>/; the first line makes both. The same command again goes on
where it stopped, and rebuilds what is damaged or whose inputs, recipe, code or codec weights have changed. With --cluster an array of
SLURM tasks does the work; the same command again says where it stands, and sends tasks up to --tasks.

The last line on stdout is the dataset's folder; with --cluster (and without --wait) the id of the job that completes it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models.codecs import SAMPLE_RATES, check_codec
from pipeline.errors import RunFailed, UserError, nearest, run_command

if TYPE_CHECKING:
    from data_prep.stage import Stage

DATASETS = {  # modules with RECIPES, the first of them the default
    "cocochorales": "data_prep.cocochorales",
    "slakh": "data_prep.slakh",
    "audio_pairs": "data_prep.audio_pairs",
    "vocal_pairs": "data_prep.vocal_pairs",
    "fma": "data_prep.fma",
    "musicnet": "data_prep.musicnet",
}


def main() -> None:
    args = _parser().parse_args()
    stage = find_stage(args.dataset, args.recipe)
    root = args.out or Path(os.environ.get("SLURMPHONY_DATA") or _data_of(args.cluster) or "data")
    if args.codec is not None:
        check_codec(args.codec)
    folder = root / (stage.recipe if args.codec is None else f"{stage.recipe}-{args.codec}")
    codec = "" if args.codec is None else f" --codec {args.codec}"
    again = f"python data_prep/prepare.py {args.dataset} --recipe {stage.recipe}{codec} --out {root}"
    if args.verify:
        _verify(folder, again)
    elif args.status:
        _status(folder)
    else:
        _check(args, again)
        for made, source, where in _steps(stage, args, root, again):
            if args.cluster:
                _send(made, source, where, args, again)
            else:
                _prepare(made, source, where, args)


def _steps(stage: Stage, args: argparse.Namespace, root: Path, again: str) -> Iterator[tuple[Stage, Path, Path]]:
    """What is made of what, and where, one after the other: shards of the source where one is given, then latents of the shards."""
    shards = root / stage.recipe
    if args.source is not None:
        yield stage, args.source, shards
    if args.codec is not None:
        if not (shards / "manifest.json").is_file():
            raise UserError(f"no prepared data in {shards} to make latents of; make both with: {again} --source DIR")
        from data_prep.latents import latent_stage  # late: what it looks at may just have been made

        yield latent_stage(shards, args.codec), shards, root / f"{stage.recipe}-{args.codec}"


def find_stage(dataset: str, recipe: str | None) -> Stage:
    """The recipe of a dataset; UserError with the valid names where there is none of that name."""
    if dataset not in DATASETS:
        known = ", ".join(DATASETS)
        raise UserError(f"no dataset '{dataset}'.{nearest(dataset, DATASETS)} There are: {known}.")
    recipes: dict[str, Stage] = importlib.import_module(DATASETS[dataset]).RECIPES
    name = recipe or next(iter(recipes))
    if name not in recipes:
        raise UserError(f"{dataset} has no recipe '{name}'.{nearest(name, recipes)} It has: {', '.join(recipes)}.")
    return recipes[name]


def _data_of(cluster: str | None) -> str | None:
    """The data root that a cluster's profile names."""
    if cluster is None:
        return None
    from jobs.prepare_slurm import data_of

    return data_of(cluster)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python data_prep/prepare.py", description="Make shards of a dataset.")
    parser.add_argument("dataset", metavar="DATASET", help=f"one of: {', '.join(DATASETS)}")
    parser.add_argument("--source", metavar="DIR", type=Path, help="where the dataset lies")
    parser.add_argument(
        "--recipe", metavar="R", help="what is cut out of it (default: the dataset's first; a wrong name lists them)"
    )
    parser.add_argument("--codec", metavar="C", help=f"make latents of the shards: {', '.join(SAMPLE_RATES)}")
    parser.add_argument("--out", metavar="DIR", type=Path, help="data root (default: $SLURMPHONY_DATA, else data)")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="processes (default: all cores; 0: none but this one), with --cluster of each task (default: the profile's)",
    )
    parser.add_argument(
        "--max-failures", metavar="F", type=float, default=0.05, help="bad inputs allowed (default .05)"
    )
    parser.add_argument("--cluster", metavar="NAME", help="on SLURM, with this profile of configs/clusters/")
    parser.add_argument("--tasks", metavar="N", type=int, default=4, help="with --cluster: tasks at work (default 4)")
    parser.add_argument("--time", metavar="H:MM:SS", help="with --cluster: time limit (default: the profile's)")
    parser.add_argument("--wait", action="store_true", help="with --cluster: stay until it is complete")
    parser.add_argument(
        "--then", metavar="NAME", action="append", default=[], help="with --cluster: launch NAME when it is complete"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="how far it is; starts nothing")
    what.add_argument("--verify", action="store_true", help="read every byte and compare; changes nothing")
    return parser


def _check(args: argparse.Namespace, again: str) -> None:
    if args.source is None and args.codec is None:
        raise UserError(f"--source is missing: where does {args.dataset} lie? {again} --source DIR")
    if args.workers is not None and args.workers < 0:
        raise UserError(f"--workers {args.workers} is not a number of processes; give 1 or more (0: work in this one).")
    if not 0 <= args.max_failures <= 1:
        raise UserError(f"--max-failures {args.max_failures} is not a fraction; give a number from 0 to 1.")
    if args.then and not args.cluster:
        raise UserError("--then goes with --cluster; here: prepare, and then python jobs/launch.py NAME.")
    if args.tasks < 1:
        raise UserError(f"--tasks {args.tasks} is not a number of tasks; give 1 or more.")
    if args.source is not None and not args.source.is_dir():
        raise UserError(f"{args.source} is not a folder; give the folder that {args.dataset} was unpacked into.")
    if args.cluster and args.source is not None and args.codec is not None and not args.wait:
        raise UserError(
            "with --cluster, --source and --codec are two jobs, one after the other: add --wait, or make the shards first."
        )


def _send(stage: Stage, source: Path, folder: Path, args: argparse.Namespace, again: str) -> None:
    from jobs.prepare_slurm import Request, follow, launch_after, send

    source, folder = source.absolute(), folder.absolute()
    request = Request(stage, source, folder, args.cluster, args.tasks, args.workers, args.time, args.max_failures)
    job, lines = send(request)
    print("\n".join(lines), file=sys.stderr)
    if args.then:
        launcher = launch_after(request, job, args.then)
        print(f"{' then '.join(args.then)} will be launched by job {launcher}, after {job} succeeds.", file=sys.stderr)
    if not args.wait:
        print(f"How far it is: {again} --status", file=sys.stderr)
        print(job)
        return
    for line in follow(folder):
        print(line, file=sys.stderr, flush=True)
    if not (folder / "manifest.json").is_file():
        raise RunFailed(f"job {job} has ended and {folder} is not complete; {again} --status says why.")
    print(folder)


def _status(folder: Path) -> None:
    from data_prep.status import show_status
    from jobs.prepare_slurm import describe

    show_status(folder, describe(folder.absolute()))


def _prepare(stage: Stage, source: Path, folder: Path, args: argparse.Namespace) -> None:
    workers = os.cpu_count() or 1 if args.workers is None else args.workers
    from data_prep.engine import prepare  # late: --help and the user's mistakes answer at once
    from data_prep.finish import QUARANTINE, finish
    from data_prep.worker import mishap

    start = time.monotonic()
    try:
        plan, built = prepare(stage, source, folder, workers, args.max_failures)
        quarantined = finish(stage, plan, folder)
    except OSError as error:
        raise RunFailed(mishap(error, folder)) from error
    if built:
        print(f"{built} of {len(plan.shards)} shards built in {time.monotonic() - start:.1f} s.", file=sys.stderr)
    else:
        print(f"complete already: {len(plan.shards)} shards, every byte checked.", file=sys.stderr)
    if quarantined:
        where = folder / QUARANTINE
        print(f"{len(quarantined)} of {plan.inputs} inputs quarantined; the reasons are in {where}.", file=sys.stderr)
    print(folder)


def _verify(folder: Path, again: str) -> None:
    from data_prep.finish import verify

    files, wrong = verify(folder)
    if wrong:
        listed = "\n".join(f"  {sentence}" for sentence in wrong)
        raise RunFailed(
            f"{len(wrong)} things in {folder} are not as they were written:\n{listed}\nTo rebuild: {again} --source DIR"
        )
    print(f"{files} files, every byte as written.", file=sys.stderr)
    print(folder)


if __name__ == "__main__":
    run_command(main)
