"""Prove that runs are whole: ``python sync/verify.py [HOST] [RUN] [--repair]``.

Every file here is hashed and compared with what was written down of it: by the training (a checkpoint's MANIFEST.json) and by the
pull that brought it. Without HOST no cluster is asked: runs/ and everything below pulled/ is checked. With HOST the same files
are hashed there, too; a fault then names the good side, and --repair takes the file from it. Files that are only here stay as they
are, whatever they are. Exit code 1 where a fault is left.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from jobs.profiles import profile_names
from pipeline.errors import EXIT_FAILED, UserError, nearest, run_command
from sync.check import Checked, Far, check_own, check_pulled, read_here, read_there
from sync.far import list_files, matching, run_names
from sync.host import Host, find_host
from sync.judge import HERE, Fault
from sync.parts import PARTS, below, parse_parts, tops_of
from sync.progress import amount, say
from sync.pulled import ROOT, Pulled, pulled_root
from sync.repair import repair


def verify_own(runs: Path, args: argparse.Namespace) -> list[Checked]:
    """Check the runs that were made on this machine."""
    return [told(check_own(runs / run, run, args.tops), str(runs), None) for run in chosen(run_names(str(runs)), args)]


def verify_pulled(pulled: Pulled, args: argparse.Namespace) -> list[Checked]:
    """Check what came from a cluster without asking it."""
    with pulled.locked():
        names = chosen(runs_here(pulled), args)
        return [told(judged(pulled, run, args.tops), str(pulled.root), None) for run in names]


def judged(pulled: Pulled, run: str, tops: list[str], far: Far | None = None) -> Checked:
    return check_pulled(pulled, run, tops, read_here(pulled.root / run, tops), far)


def verify_with(host: Host, pulled: Pulled, args: argparse.Namespace) -> list[Checked]:
    """Check what came from a cluster against the cluster, and mend what can be mended if asked to."""
    with pulled.locked(), host:
        names = chosen(runs_here(pulled), args)
        if not names:
            raise UserError(
                f"nothing of {args.run or 'any run'} has come from {host.name} yet; type: python sync/pull.py {host.name}"
            )
        listing = host.list_runs(None, args.tops)()
        reading = read_there(host, listing.root, {run: asked(pulled, run, args.tops) for run in names})
        here = {run: read_here(pulled.root / run, args.tops) for run in names}
        far = reading()
        checked = []
        for run in names:
            there = gone_with(listing.names, run, far[run])
            found = told(check_pulled(pulled, run, args.tops, here[run], there), host.name, host)
            if args.repair and found.faults:
                repair(host, listing, pulled, found)
                again = read_there(host, listing.root, {run: asked(pulled, run, args.tops)})()[run]
                found = told(judged(pulled, run, args.tops, again), f"{host.name}, after the repair", host)
            checked.append(found)
        return checked


def gone_with(names: list[str], run: str, far: Far) -> Far | None:
    """A run that was removed on the cluster altogether is no fault of its files: it is judged by what is here."""
    if run in names or far.found:  # without its config it is no run there, and some of its files are
        return far
    say(f"{run} is no longer on the cluster: checked against what was written down when it came.")
    return None


def runs_here(pulled: Pulled) -> list[str]:
    """Runs that came from a cluster, also those of which nothing is left but the record."""
    return sorted({*run_names(str(pulled.root)), *pulled.recorded_runs()})


def asked(pulled: Pulled, run: str, tops: list[str]) -> list[str]:
    """Names of the files of a run that are here or should be."""
    try:
        recorded = [name for name in pulled.record(run) if below(name, tops)]
    except (ValueError, KeyError, TypeError):  # a damaged record: told when the run is judged
        recorded = []
    return sorted({*recorded, *list_files(str(pulled.root / run), tops)})


def chosen(names: list[str], args: argparse.Namespace) -> list[str]:
    return matching(names, args.run)


# -- telling ----------------------------------------------------------------------------------------------------


def told(checked: Checked, where: str, host: Host | None) -> Checked:
    """Print what was found of a run: a line a fault on stdout, one line of all on stderr."""
    for fault in checked.faults:
        print(f"{checked.run}/{fault.name}: {sentence(fault, host)}", flush=True)
    state = f"{len(checked.faults)} faults" if checked.faults else "whole"
    unknown = f", {checked.unknown:,} of them in no manifest" if checked.unknown else ""
    say(f"{checked.run} ({where}): {state}; {amount(checked.files, checked.size)} checked{unknown}")
    return checked


def sentence(fault: Fault, host: Host | None) -> str:
    """``damaged here; good on mycluster``."""
    there = host.name if host else "the cluster"
    where = "here" if fault.where == HERE else f"on {there}"
    if fault.kind == "extra":
        return "extra: only here, and in no manifest; it stays as it is"
    if fault.good is None:
        asked = "no side is known to be good" if host else "ask the cluster: python sync/verify.py HOST"
        return f"{fault.kind} {where}; {asked}"
    return f"{fault.kind} {where}; good {f'on {there}' if fault.where == HERE else 'here'}"


# -- the command ------------------------------------------------------------------------------------------------


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python sync/verify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", metavar="HOST", nargs="?", help="a profile in configs/clusters/ with an ssh: line")
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run's name (dismix/1f3a9c2e) or a config's; else all")
    parser.add_argument("--only", metavar="PART,...", help=f"default: all that is here; of {', '.join(PARTS)}")
    parser.add_argument("--repair", action="store_true", help="with HOST: bring or send the good side's file")
    parser.add_argument("--to", metavar="DIR", help="where pull put them; default: SLURMPHONY_PULLED or pulled/")
    parser.add_argument("--runs", metavar="DIR", help="run folders of this machine; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args(words)
    if args.host and args.run is None and args.host not in profile_names():
        args.host, args.run = None, args.host
    if args.repair and not args.host:
        raise UserError("--repair needs the other side; type: python sync/verify.py HOST --repair")
    args.tops = tops_of(parse_parts(args.only)) if args.only else ["*"]
    args.runs = Path(args.runs or os.environ.get("SLURMPHONY_RUNS") or ROOT / "runs").absolute()
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    began = time.monotonic()
    root = pulled_root(args.to)
    if args.host:
        pulled = Pulled(root / args.host)
        checked = verify_with(find_host(args.host, pulled.seen), pulled, args)
    else:
        folders = sorted(path for path in root.iterdir() if (path / ".sync").is_dir()) if root.is_dir() else []
        checked = verify_own(args.runs, args)
        checked += [found for folder in folders for found in verify_pulled(Pulled(folder), args)]
    if args.run and not checked:
        names = [*run_names(str(args.runs)), *profile_names()]
        raise UserError(
            f"'{args.run}' is no profile in configs/clusters/, nor a run in {args.runs} or below {root}.{nearest(args.run, names)}"
        )
    size, seconds = sum(found.size for found in checked), time.monotonic() - began
    say(f"{len(checked)} runs, {amount(sum(found.files for found in checked), size)} in {seconds:.1f} s")
    return EXIT_FAILED if any(found.faults for found in checked) else 0


if __name__ == "__main__":
    run_command(main)
