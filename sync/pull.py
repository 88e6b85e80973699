"""Bring runs from the cluster: ``python sync/pull.py HOST [RUN] [--watch] [--only samples,metrics,ema,...]``.

HOST is a profile in configs/clusters/ with an ``ssh:`` line. Runs come to pulled/HOST/, light parts first; every file is compared
with the cluster's own hash before it gets its name, so what is there is whole. Type it again after any interruption: it goes on.
Nothing is deleted here unless ``--delete`` is given. The last line on stdout is the folder.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from pipeline.errors import UserError, run_command
from sync.host import find_host
from sync.parts import PARTS, parse_parts
from sync.pulled import Pulled, pulled_root

EVERY = 30.0  # seconds between two looks of --watch
MOST_DELETED = 1000  # files, unless --max-delete says otherwise


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python sync/pull.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", metavar="HOST", help="a profile in configs/clusters/ with an ssh: line")
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="a run's name there (dismix/1f3a9c2e) or a config's; else all"
    )
    parser.add_argument("--only", metavar="PART,...", help=f"default metrics,samples,logs; of {', '.join(PARTS)}")
    parser.add_argument("--watch", action="store_true", help="stay, and bring what is new")
    parser.add_argument("--until-closed", action="store_true", help="with --watch: end when stdin is closed")
    parser.add_argument(
        "--every", type=float, default=EVERY, metavar="SECONDS", help=f"with --watch; default {EVERY:.0f}"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would come, and list it on stdout")
    parser.add_argument("--bwlimit", type=int, metavar="KB", help="kilobytes a second at most")
    parser.add_argument("--to", metavar="DIR", help="instead of pulled/ (or SLURMPHONY_PULLED)")
    parser.add_argument(
        "--delete", action="store_true", help="delete here what came once and is no longer there; asks first"
    )
    parser.add_argument("--max-delete", type=int, default=MOST_DELETED, metavar="N", help=f"default {MOST_DELETED}")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    args = parser.parse_args(words)
    args.parts = parse_parts(args.only)
    for name in ("every", "bwlimit"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name} must be greater than zero.")
    args.options = [f"--bwlimit={args.bwlimit}"] if args.bwlimit else []
    args.quiet = False
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as with Ctrl-C
    pulled = Pulled(pulled_root(args.to) / args.host)
    host = find_host(args.host, pulled.seen)
    host.begin()
    from sync.pulling import pull, watch  # late: it loads while the cluster's Python starts

    if args.watch:
        watch(host, pulled, args)
    else:
        with host:
            pull(host, pulled, args)
    print(folder_of(pulled, args.run))
    return 0


def folder_of(pulled: Pulled, run: str | None) -> Path:
    exact = pulled.root / (run or "")
    return exact if exact.is_dir() else pulled.root


if __name__ == "__main__":
    run_command(main)
