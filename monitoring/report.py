"""What a run came to, as one page, or what all runs cost in a month.

``python monitoring/report.py RUN`` writes one HTML file that opens anywhere, offline, with its curves, sounds and pictures inside.
``python monitoring/report.py --month 2026-11`` prints where the GPU-hours went.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.errors import UserError, run_command
from pipeline.files import write_atomic
from pipeline.runs import find_run, list_runs, runs_root

ROOT = Path(__file__).resolve().parent.parent


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python monitoring/report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run folder, its name (dismix_demo/1f3a9c2e), or a config's name"
    )
    parser.add_argument("--against", metavar="OTHER", help="another run, shown beside it")
    parser.add_argument("--out", metavar="FILE", help="the page; default: report.html in the run folder")
    parser.add_argument("--month", metavar="YYYY-MM", help="print the ledger of a month instead")
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args(words)
    args.runs = runs_root(args.runs)
    if (args.run is None) == (args.month is None):
        raise UserError(
            "say which run (python monitoring/report.py dismix_demo) or which month (--month 2026-11), one of the two."
        )
    if args.month and (args.against or args.out):
        raise UserError("--against and --out go with a run, not with --month.")
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    if args.month:
        return print_ledger(args.runs, args.month)
    from monitoring.page import render

    run = find_run(args.run, args.runs)
    other = find_run(args.against, args.runs) if args.against else None
    out = Path(args.out).absolute() if args.out else run.path / "report.html"
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out} is no file in a folder that exists; name one, for example --out report.html.")
    write_atomic(out, render(run, other).encode(), durable=False)
    print(
        f"{run.name}: {out.stat().st_size / 1e6:.1f} MB; open it in any browser, it needs nothing else", file=sys.stderr
    )
    print(out)
    return 0


def print_ledger(root: Path, month: str) -> int:
    """The month by run, user and system, in GPU-hours."""
    from rich.console import Console
    from rich.table import Table

    from monitoring.ledger import KINDS, Account, ledger, month_of, totals

    try:
        begin, end = month_of(month)
    except ValueError:
        raise UserError(f"--month {month} is no month; for example --month 2026-11.") from None
    owned = ledger(list_runs(root), begin, end)
    powered = any(one.account.energy for one in owned)
    columns = ["GPUh held", *KINDS[1:], "useful %", "waited for", *(["kWh of GPUs"] if powered else [])]
    table = Table("", *columns, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, account: Account) -> None:
        share = f"{account.hours['useful'] / account.held:.0%}" if account.held else ""
        hours = [account.held, *(account.hours[kind] for kind in KINDS[1:])]
        energy = [f"{account.energy:,.2f}"] if powered else []
        table.add_row(name, *(f"{h:,.2f}" for h in hours), share, f"{account.hours['queued']:,.2f}", *energy)

    for one in owned:
        add(one.run, one.account)
    for by in ("user", "system"):
        table.add_section()
        for name, account in sorted(totals(owned, by).items()):
            add(f"{by} {name}", account)
    Console(width=None if sys.stdout.isatty() else 160).print(table if owned else f"no run did anything in {month}.")
    return 0


if __name__ == "__main__":
    run_command(main)
