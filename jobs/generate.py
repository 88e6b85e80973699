"""Audio from a trained run: ``python jobs/generate.py RUN [the system's own inputs] --out DIR``.

``python jobs/generate.py RUN --help`` shows what the run's system takes.
"""

from __future__ import annotations

import argparse
import os
import sys

from jobs.configs import add_place_arguments, load_frozen, output_folder
from pipeline.errors import UserError, run_command
from pipeline.runs import RunFolder, find_run, runs_root


def main() -> int:
    parser = argparse.ArgumentParser(prog="python jobs/generate.py", description=__doc__, add_help=False)
    parser.add_argument(
        "run", nargs="?", help="a run folder, its name (dismix_demo/1f3a9c2e), or a config's name (its newest run)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where audio and pictures go; default: the run's samples/generated/001, 002, ..."
    )
    add_place_arguments(parser)
    common, rest = parser.parse_known_args()
    if common.run is None:
        parser.print_help(sys.stderr)
        if rest in (["-h"], ["--help"]):
            return 0
        raise UserError("say which run: python jobs/generate.py dismix_demo --help shows what it takes.")
    run = find_run(common.run, runs_root(common.runs))

    from models import registry

    system = registry.part(load_frozen(run.config_file).model, "generate")
    full = argparse.ArgumentParser(
        prog=f"python jobs/generate.py {common.run}", parents=[parser], description=system.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    system.add_arguments(full)
    args = full.parse_args()

    if getattr(args, "pairs", None):
        return draw_pairs(run, args)

    from jobs.trained import load_trained

    trained = load_trained(run, args.data, args.device)
    earlier = [int(p.name) for p in (run.samples / "generated").glob("*") if p.name.isdigit()]
    with output_folder(args.out, run.samples / "generated" / f"{max(earlier, default=0) + 1:03d}") as out:
        for path in system.generate(trained.module, args, trained.data_folder, out):
            print(path)
    return 0


def draw_pairs(run: RunFolder, args: argparse.Namespace) -> int:
    """``--pairs N``: two light shows of each of N songs, into the run's ``pairs/``, for people to compare (CQTML)."""
    from jobs.pairs_link import make_here
    from models.cqtml.config import PairsConfig

    make_here(
        run, PairsConfig(of=run.name, count=args.pairs, seed=args.seed, raters="people"), os.cpu_count() or 1, args.data
    )
    print(run.path / "pairs")
    return 0


if __name__ == "__main__":
    run_command(main)
