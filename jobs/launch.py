"""Start, resume or extend a training run: ``python jobs/launch.py NAME --nodes 1 --gpus 4``.

Launching the same config again finds the same run: it goes on from where it stands, or says that it is complete or running. This path
never imports torch: on a login node every answer and every error comes in well under a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from jobs.chain import launch_chain
from jobs.clusters import choose_cluster, load_cluster
from jobs.configs import data_root, load_named
from jobs.planning import Where, say
from pipeline.errors import UserError, run_command


def parser() -> argparse.ArgumentParser:
    """The command's grammar."""
    whole = argparse.ArgumentParser(
        prog="python jobs/launch.py",
        usage="%(prog)s NAME | --resume RUN  [options]",
        description="Start, resume or extend a training run.",
        epilog="The run folder's path is the last line on stdout. Exit 0: done; 1: it ran and failed; 2: your mistake.",
    )
    _add_what(whole.add_argument_group("what").add_argument)
    _add_where(whole.add_argument_group("where").add_argument)
    _add_how(whole.add_argument_group("how").add_argument)
    return whole


def _add_what(add: Callable[..., Any]) -> None:
    add("name", nargs="?", metavar="NAME", help="a file in configs/, without .yaml (a wrong name lists them)")
    add("--resume", metavar="RUN", help="go on with a run (folder, name or config), possibly with changed --set values")
    add(
        "--checkpoint",
        type=int,
        metavar="STEP",
        help="with --resume: go back to this step first; later ones are kept aside",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="as in --set optimizer.lr=3e-4; may be repeated; of NAME alone, not of those after --then",
    )
    add("--strategy", choices=("ddp", "deepspeed"), help="short for --set trainer.strategy=...")
    add(
        "--then",
        action="append",
        default=[],
        metavar="NAME",
        help="queue NAME after this one succeeds (may be repeated)",
    )
    add(
        "--use",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="where a config names another NAME, take this run of it (default: the chain's, else the newest)",
    )
    add(
        "--grid", action="append", default=[], metavar="KEY=A,B,...",
        help="one run for each value (repeated: for each combination), on SLURM as one array",
    )  # fmt: skip
    add("--new", action="store_true", help="make a sibling of a run that exists already")


def _add_where(add: Callable[..., Any]) -> None:
    add("--cluster", metavar="NAME", help="a file in configs/clusters/; left out: SLURM where sbatch is, else local")
    add("--nodes", type=int, default=1, metavar="N", help="default: 1")
    add(
        "--gpus", type=int, metavar="N",
        help="per node, one process each; default: the profile's, here: this machine's GPUs or one CPU process",
    )  # fmt: skip
    add("--time", metavar="H:MM:SS", help="time limit on SLURM; default: the profile's")
    add("--data", metavar="DIR", help="data root; default: SLURMPHONY_DATA, the profile's, or data/")
    add("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS, the profile's, or runs/")


def _add_how(add: Callable[..., Any]) -> None:
    add("--dry-run", action="store_true", help="print what would be queued and make nothing")
    add(
        "--describe",
        action="store_true",
        help="print shapes, parameters, memory and FLOPs, and make nothing (needs `make setup`)",
    )
    add(
        "--find-batch",
        action="store_true",
        help="try on this machine how many samples fit at once and which number is fastest, and make nothing (needs `make setup`)",
    )
    add("--wait", action="store_true", help="stay until the run ends, also when it runs elsewhere")
    add("--no-preflight", action="store_true", help="do not read from the data, measure the model, or ask sbatch first")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """What was typed; UserError where it contradicts itself."""
    args = parser().parse_args(words)
    if (args.name is None) == (args.resume is None):
        raise UserError(
            "say what to launch: a config's name (python jobs/launch.py dismix_demo), or --resume RUN, one of the two."
        )
    if args.grid and (args.name is None or args.then or args.new or args.wait):
        raise UserError("--grid goes with a config's name, and not with --then, --new or --wait.")
    for flag in ("describe", "find_batch"):
        if getattr(args, flag) and args.name is None:
            word = "--" + flag.replace("_", "-")
            raise UserError(f"{word} goes with a config's name: python jobs/launch.py dismix_demo {word}.")
    if args.checkpoint is not None and args.resume is None:
        raise UserError("--checkpoint goes with --resume RUN: it says to which step that run goes back.")
    for flag in ("nodes", "gpus"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be at least 1, not {getattr(args, flag)}.")
    if args.strategy:
        args.overrides.append(f"trainer.strategy={args.strategy}")
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    if args.describe or args.find_batch:
        return look(args)
    cluster_name, why = choose_cluster(args.cluster, dry_run=args.dry_run)
    where = Where(cluster_name, load_cluster(cluster_name), args.nodes, args.gpus, args.data, args.runs)
    say(f"cluster: {cluster_name} ({why})")
    if where.cluster.scheduler == "local" and args.nodes > 1:
        raise UserError(f"--nodes {args.nodes} needs SLURM; on this machine there is one node: leave --nodes out.")
    if args.grid:
        from jobs.grid import launch_grid

        return launch_grid(args, where)
    link = launch_chain(args, where)
    print(link.run.path)
    return link.code


def look(args: argparse.Namespace) -> int:
    """What the config builds, or holds at once, for the data where it is prepared, else for what its recipe gives."""
    config = load_named(args.name, args.overrides)
    folder = data_root(args.data) / config.data.folder_name
    prepared = folder if (folder / "manifest.json").is_file() else None
    if args.find_batch:
        from jobs import find_batch

        find_batch.show(config, prepared, (args.nodes or 1) * (args.gpus or 1))
    else:
        from jobs import describe  # the only path here that imports torch

        describe.show(config, prepared)
    return 0


if __name__ == "__main__":
    run_command(main)
