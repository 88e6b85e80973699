"""How all runs stand, on one screen: ``python monitoring/status.py``.

On the cluster or on a laptop, from the run folders or a mirror of them. SLURM is asked at most once a minute, however many look.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from monitoring.overview import Overview, look
from pipeline.errors import UserError, run_command
from pipeline.runs import runs_root

if TYPE_CHECKING:
    from monitoring.alerts import Alerts

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 5.0  # between two looks


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python monitoring/status.py", description=__doc__)
    parser.add_argument("--watch", action="store_true", help="stay, and look again every few seconds; Ctrl-C ends it")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object a line, a line a look")
    parser.add_argument("--all", action="store_true", help="also what ended more than a week ago")
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    parser.add_argument(
        "--alert", metavar="FILE", help="a YAML file that says whom to tell when a run needs somebody (see alerts.py)"
    )
    parser.add_argument("--every", type=float, default=SECONDS, metavar="S", help=f"default: {SECONDS:.0f} seconds")
    args = parser.parse_args(words)
    args.runs = runs_root(args.runs)
    if not args.runs.is_dir():
        raise UserError(
            f"no folder {args.runs}; start a run with: python jobs/launch.py dismix_demo, or name it with --runs."
        )
    if not args.every >= 1:
        raise UserError(f"--every {args.every:g} is too often; give at least 1 second.")
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    alerts = None
    if args.alert:
        from monitoring.alerts import Alerts, read_alerts

        alerts = Alerts(read_alerts(Path(args.alert)), args.runs)
    if args.watch:
        return watch(args, alerts)
    overview = look(args.runs)
    tell(overview, args)
    if alerts:
        alerts.tell(overview)
    return 0


def tell(overview: Overview, args: argparse.Namespace) -> None:
    """One look on stdout."""
    if args.json:
        print(json.dumps(overview.as_json()), flush=True)
        return
    from rich.console import Console

    from monitoring.screen import screen

    wide = None if sys.stdout.isatty() else 220  # a pipe has no width
    Console(width=wide).print(screen(overview, everything=args.all))


def watch(args: argparse.Namespace, alerts: Alerts | None) -> int:
    """Look again and again until Ctrl-C; on a terminal in place, elsewhere one screen (with --json: one line) after the other."""
    if args.json or not sys.stdout.isatty():
        return keep_looking(args, lambda overview: tell(overview, args), alerts)
    from rich.live import Live

    from monitoring.screen import screen

    with Live(screen=True, auto_refresh=False) as live:
        return keep_looking(args, lambda o: live.update(screen(o, everything=args.all), refresh=True), alerts)


def keep_looking(args: argparse.Namespace, display: Callable[[Overview], None], alerts: Alerts | None) -> int:
    try:
        while True:
            overview = look(args.runs)
            display(overview)
            if alerts:
                alerts.tell(overview)
            time.sleep(args.every)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    run_command(main)
