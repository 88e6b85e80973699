"""Bring runs from the cluster: ``python sync/pull.py HOST [RUN] [--watch] [--only samples,metrics,ema,...]``.

HOST is a profile in configs/clusters/ with an ``ssh:`` line. Runs come to pulled/HOST/, light parts first; every file is compared
with the cluster's own hash before it gets its name, so what is there is whole. Type it again after any interruption: it goes on.
Nothing is deleted here unless ``--delete`` is given. The last line on stdout is the folder.
"""

from __future__ import annotations

import argparse
import select
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunFailed, UserError, run_command
from sync.far import list_files, remove, to_bytes
from sync.host import Host, Listing, find_host
from sync.parts import COMPRESSED, PARTS, Files, belongs, choose, parse_parts, tops_of
from sync.progress import amount, confirmed, say
from sync.pulled import Pulled, Record, pulled_root

EVERY = 30.0  # seconds between two looks of --watch
LONGEST_PAUSE = 600.0  # between attempts while the cluster cannot be reached
MOST_DELETED = 1000  # files, unless --max-delete says otherwise


@dataclass(frozen=True)
class Plan:
    """What a pull is about to do: by part the files to fetch, and files that came once and are no longer there (``<run>/<name>``)."""

    fetch: dict[str, Files]
    gone: list[str]

    def describe(self) -> list[str]:
        lines = []
        for part, files in self.fetch.items():
            runs = len({name.rpartition("/" + name.split("/", 2)[2])[0] for name in files})
            if files:
                size = sum(size for size, _ in files.values())
                lines.append(f"{part}: {amount(len(files), size)} of {runs} {'run' if runs == 1 else 'runs'}")
        return lines


def make_plan(pulled: Pulled, listing: Listing, parts: tuple[str, ...]) -> Plan:
    """Compare what lies there with what is recorded here, by size and time on both sides."""
    fetch: dict[str, Files] = {part: {} for part in parts}
    gone = []
    for run, files in listing.files.items():
        record = known(pulled, run)
        here = list_files(str(pulled.root / run), tops_of(parts))
        chosen: Files = {}
        for part in parts:
            of_part = choose(files, part)
            needed = {name: facts for name, facts in of_part.items() if not _unchanged(record, here, name, facts)}
            fetch[part] |= {f"{run}/{name}": facts for name, facts in needed.items() if name not in chosen}
            chosen |= of_part
        asked = {name for name in record if any(belongs(name, part) for part in parts)}
        gone += [f"{run}/{name}" for name in sorted(asked - files.keys())]
    return Plan(fetch, gone)


def known(pulled: Pulled, run: str) -> Record:
    """The run's record; a damaged one is put away, and all of the run is compared anew."""
    try:
        return pulled.record(run)
    except (ValueError, KeyError, TypeError) as error:
        file = pulled.record_file(run)
        say(f"{file} is damaged ({error}); comparing all of {run} anew.")
        file.unlink()
        return {}


def _unchanged(record: Record, here: Files, name: str, there: list[int]) -> bool:
    entry = record.get(name)
    return (
        entry is not None
        and there == [entry.size, entry.changed_there]
        and here.get(name) == [entry.size, entry.changed_here]
    )


# -- one pull ---------------------------------------------------------------------------------------------------


def pull(host: Host, pulled: Pulled, args: argparse.Namespace) -> None:
    """One look and what follows from it."""
    with pulled.locked():
        look_and_bring(host, pulled, args)


def look_and_bring(host: Host, pulled: Pulled, args: argparse.Namespace) -> None:
    listing = look(host, pulled, args)
    plan = make_plan(pulled, listing, args.parts)
    tell(host, plan, listing, args)
    if args.dry_run:
        for name in [name for files in plan.fetch.values() for name in files]:
            print(name)
    else:
        steady = bring_parts(host, pulled, plan, listing, args)
        pulled.saw(listing.time, host)
        if steady and not plan.gone and listing.files:
            now = {run: (listing.digests[run], pulled.digest_here(run, tops_of(args.parts))) for run in listing.files}
            pulled.write_looks(args.parts, {**pulled.looks(args.parts), **now})
    if plan.gone:
        settle_gone(pulled, plan.gone, listing, args)


def look(host: Host, pulled: Pulled, args: argparse.Namespace) -> Listing:
    """What lies there, without the files of runs that lie there and here as they did when nothing was left to bring."""
    tops = tops_of(args.parts)
    looks = {run: look for run, look in pulled.looks(args.parts).items() if args.run in (None, run, run.split("/")[0])}
    listed = host.list_runs(args.run, tops, {run: there for run, (there, _) in looks.items()})
    as_it_was = {run for run, (_, here) in looks.items() if pulled.digest_here(run, tops) == here}
    listing = listed()
    if as_it_was.issuperset(listing.same):
        return listing
    return host.list_runs(args.run, tops, {run: looks[run][0] for run in as_it_was})()


def tell(host: Host, plan: Plan, listing: Listing, args: argparse.Namespace) -> None:
    """Say what will come; while watching only where something does."""
    lines = plan.describe()
    if lines or not args.quiet:
        runs = len(listing.digests)
        say(f"{host.name}: {'; '.join(lines) or f'nothing new in {runs} ' + ('run' if runs == 1 else 'runs')}")


def bring_parts(host: Host, pulled: Pulled, plan: Plan, listing: Listing, args: argparse.Namespace) -> bool:
    """Fetch what is planned, part by part; whether all of it came as it was listed."""
    from sync.arrival import bring  # late: mostly nothing is to come

    steady = True
    for part, files in plan.fetch.items():
        if not files:
            continue
        options = [*args.options, *(["-z"] if part in COMPRESSED else [])]
        arrived = bring(host, listing.root, pulled, files, part, options)
        say(f"{part}: {amount(arrived.files, arrived.size)} verified")
        if arrived.unsteady:
            say(
                f"{part}: {len(arrived.unsteady)} files changed at every look, such as {arrived.unsteady[0]}; next time."
            )
        steady = steady and not arrived.unsteady and not arrived.gone
    return steady


def settle_gone(pulled: Pulled, gone: list[str], listing: Listing, args: argparse.Namespace) -> None:
    """Files that are no longer on the cluster stay, unless --delete, and then only after it was asked and is plausible."""
    if not args.delete:
        if not args.quiet:
            say(
                f"{len(gone):,} files are no longer on {args.host} and stay here (--delete removes them), such as {gone[0]}"
            )
        return
    emptied = [run for run, files in listing.files.items() if any(n.startswith(f"{run}/") for n in gone) and not files]
    if emptied:
        raise RunFailed(f"{emptied[0]} is empty on {args.host}: nothing is deleted here for that. Look there first.")
    if len(gone) > args.max_delete:
        raise UserError(f"{len(gone):,} files would be deleted here; --max-delete {len(gone)} allows that many.")
    if args.dry_run:
        say(f"{len(gone):,} files would be deleted here, such as {gone[0]}")
    elif args.yes or confirmed(
        f"Delete {len(gone):,} files here that are no longer on {args.host}, such as {gone[0]}?"
    ):
        delete(pulled, gone)


def delete(pulled: Pulled, names: list[str]) -> None:
    by_run: dict[str, list[str]] = {}
    for name in names:
        config, identity, inner = name.split("/", 2)
        by_run.setdefault(f"{config}/{identity}", []).append(inner)
    for run, inners in by_run.items():
        for inner in inners:
            trouble = remove(to_bytes(str(pulled.root / run / inner)), to_bytes(str(pulled.root / run)))
            if trouble:
                raise RunFailed(f"{pulled.root / run / inner}: {trouble}")
        pulled.write_record(run, {name: e for name, e in pulled.record(run).items() if name not in inners})
    say(f"{len(names):,} files deleted here.")


def watch(host: Host, pulled: Pulled, args: argparse.Namespace) -> None:
    """Pull until stopped; a cluster that cannot be reached is tried again, ever more rarely."""
    pause = 0.0
    while pauses(pause, args):
        try:
            with host:
                pull(host, pulled, args)
            pause = args.every
        except RunFailed as error:
            pause = min(max(2 * pause, args.every), LONGEST_PAUSE)
            say(f"{error} Trying again in {pause:.0f} s.")
        args.quiet = True


def pauses(seconds: float, args: argparse.Namespace) -> bool:
    """Wait; False where stdin was closed meanwhile and that is the end."""
    if args.until_closed:
        return not select.select([sys.stdin], [], [], seconds)[0]
    time.sleep(seconds)
    return True


# -- the command ------------------------------------------------------------------------------------------------


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
    pulled = Pulled(pulled_root(args.to) / args.host)
    host = find_host(args.host, pulled.seen)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as with Ctrl-C
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
