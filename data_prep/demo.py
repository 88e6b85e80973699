"""Render a small corpus in a dataset's real layout, so that everything can be tried without downloading anything.

python data_prep/demo.py DATASET --out DIR [--tracks N] [--seed S]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from pipeline.errors import UserError, nearest, run_command

DATASETS = {  # modules with render(), DEFAULT_TRACKS and RECIPE; DATASET where it is prepared as another one
    "cocochorales": "data_prep.demo_cocochorales",
    "slakh": "data_prep.demo_slakh",
    "audio_pairs": "data_prep.demo_audio_pairs",
    "vocal_pairs": "data_prep.demo_vocal_pairs",
    "vocal_styles": "data_prep.demo_vocal_styles",
    "fma": "data_prep.demo_fma",
    "musicnet": "data_prep.demo_musicnet",
}

WITHOUT_TRAPS = ("cocochorales",)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python data_prep/demo.py", description="Render a small corpus in a dataset's real layout."
    )
    parser.add_argument("dataset", metavar="DATASET", help=f"one of: {', '.join(DATASETS)}")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="an absent or empty folder")
    parser.add_argument("--tracks", metavar="N", type=int, help="how many tracks (default: what the demo trains on)")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="the same seed gives the same bytes (default 0)"
    )
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: all cores)")
    args = parser.parse_args()
    if args.dataset not in DATASETS:
        known = ", ".join(DATASETS)
        raise UserError(f"no demo corpus '{args.dataset}'.{nearest(args.dataset, DATASETS)} There are: {known}.")
    module = importlib.import_module(DATASETS[args.dataset])
    tracks, start = module.DEFAULT_TRACKS if args.tracks is None else args.tracks, time.monotonic()
    from pipeline.progress import Progress  # late: rich is not needed for --help

    done = 0
    with Progress("rendering", "tracks", tracks) as progress:
        for done in module.render(args.out, tracks, args.seed, args.workers):
            progress.update(done)
    print(
        f"{done} tracks in {time.monotonic() - start:.1f} s." if done else "The same corpus lies there already.",
        file=sys.stderr,
    )
    dataset = getattr(module, "DATASET", args.dataset)
    if args.dataset not in WITHOUT_TRAPS:
        print("It has the dataset's traps: what prepare.py quarantines of it is meant to be.", file=sys.stderr)
    print(
        f"Next: python data_prep/prepare.py {dataset} --source {args.out} --recipe {module.RECIPE}",
        file=sys.stderr,
    )
    print(args.out)


if __name__ == "__main__":
    run_command(main)
