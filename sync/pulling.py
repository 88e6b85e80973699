"""One look at the cluster and what follows from it: what is new comes, what is gone stays or is asked about.

While watching again and again.
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import RunFailed, UserError
from sync.far import list_files, remove, to_bytes
from sync.host import Host
from sync.listing import Listing
from sync.parts import COMPRESSED, Files, belongs, choose, tops_of
from sync.progress import amount, confirmed, say
from sync.pulled import Pulled

if TYPE_CHECKING:
    from sync.record import Record

LONGEST_PAUSE = 600.0  # between attempts while the cluster cannot be reached


class Plan(NamedTuple):  # here and in sync.listing: dataclasses take longer to load than most looks
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
    steady = True
    for part, files in plan.fetch.items():
        if not files:
            continue
        from sync.arrival import bring  # late: mostly nothing is to come

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
