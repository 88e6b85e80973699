"""Bring the code and the configs to the cluster: ``python sync/push.py HOST [--dry-run]``.

What travels is what git tracks or would take (uncommitted changes and new files included, ignored ones not), without what is too
large to be code. It is compared by content, said before it is done, and proved afterwards: every file there is hashed again. Files
that an earlier push brought and that are gone here stay there unless ``--delete`` is given. HOST is a profile in configs/clusters/
with an ``ssh:`` line.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from jobs.snapshot import tracked_or_new
from pipeline.errors import RunFailed, UserError, run_command
from sync.far import hash_of
from sync.host import Host, find_host
from sync.progress import amount, confirmed, say, transfer

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 2.0  # MB of a file that may be code
MOST = 200.0  # MB of all of them
MOST_DELETED = 100  # files
RECORD = ".pushed.json"  # there: names of what the last push brought
SHOWN = 20  # names printed of a long list


@dataclass(frozen=True)
class Plan:
    """``files``: all that belongs there, with sizes; of it ``new`` and ``changed``. ``gone``: an earlier push's, no longer here."""

    files: dict[str, int]
    new: list[str]
    changed: list[str]
    gone: list[str]


def choose_files(root: Path, largest: float) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the files to push and of those that are too large; UserError outside git or where all together are too large."""
    sizes = {str(path): (root / path).stat().st_size for path in tracked_or_new(root) if not (root / path).is_symlink()}
    if not sizes:
        raise UserError(f"{root} is no git repository, so what belongs to the code is not known; clone it with git.")
    left_out = {name: size for name, size in sizes.items() if size > largest * 1e6}
    files = {name: size for name, size in sizes.items() if name not in left_out}
    if (total := sum(files.values())) > MOST * 1e6:
        raise UserError(
            f"what git would take here is {total / 1e6:.0f} MB, more than code can be ({MOST:.0f} MB); name data folders in .gitignore."
        )
    return files, left_out


def make_plan(host: Host, root: Path, files: dict[str, int]) -> Plan:
    """Compare every file with what lies there under its name, by content."""
    (*_, reply) = host.ask("read", host.folder, file=RECORD)
    try:
        earlier = json.loads(reply.get("text") or "[]")
    except ValueError:
        raise RunFailed(f"{host.folder}/{RECORD} on {host.name} is damaged; remove it there.") from None
    new, changed = differing(host, root, files)
    return Plan(files, new, changed, sorted(set(earlier) - files.keys()))


def differing(host: Host, root: Path, files: dict[str, int]) -> tuple[list[str], list[str]]:
    """Names that are not there, and names of which something else is there."""
    new, changed = [], []
    algorithm, replies = host.hashes(host.folder, [(name, None) for name in files])
    for name, facts in replies:
        own = hash_of(str(root / name), algorithm)
        if facts is None:
            new.append(name)
        elif own is None or facts[2] != own[2]:
            changed.append(name)
    return sorted(new), sorted(changed)


def describe(plan: Plan, left_out: dict[str, int], host: Host) -> None:
    """Say what will change, and what stays out."""
    for verb, names in (("new", plan.new), ("changed", plan.changed), ("no longer here", plan.gone)):
        for name in names[:SHOWN]:
            say(f"  {verb}: {name}")
        if len(names) > SHOWN:
            say(f"  {verb}: and {len(names) - SHOWN} more")
    for name, size in left_out.items():
        say(f"  left out, too large for code: {name} ({size / 1e6:.1f} MB; --max-mb raises the limit)")
    unchanged = len(plan.files) - len(plan.new) - len(plan.changed)
    size = sum(plan.files[name] for name in (*plan.new, *plan.changed))
    say(f"{host.name}:{host.folder}: {amount(len(plan.new) + len(plan.changed), size)} to send, {unchanged} unchanged")


def push(host: Host, root: Path, plan: Plan, options: list[str]) -> None:
    """Send what differs; RunFailed where something there is not what is here afterwards."""
    names = sorted((*plan.new, *plan.changed))
    (head, *_) = host.ask("write", host.folder, file=RECORD, text=json.dumps(sorted({*plan.files, *plan.gone})))
    if names:
        with transfer("code", sum(plan.files[name] for name in names)) as told:
            host.send(names, root, head["root"], options=["-z", *options], told=told)
    new, changed = differing(host, root, {name: plan.files[name] for name in names})
    wrong = [*new, *changed]
    if wrong:
        raise RunFailed(
            f"{len(wrong)} files on {host.name} are not what they are here, such as {wrong[0]}; push again."
        )
    say(f"{host.name}: all {len(plan.files)} files there are what they are here.")


def delete(host: Host, plan: Plan, args: argparse.Namespace) -> None:
    """Remove there what an earlier push brought and is gone here."""
    if len(plan.gone) > args.max_delete:
        raise UserError(
            f"{len(plan.gone)} files would be deleted there; --max-delete {len(plan.gone)} allows that many."
        )
    if not args.yes and not confirmed(f"Delete {len(plan.gone)} files on {host.name}, such as {plan.gone[0]}?"):
        return
    for line in host.ask("remove", host.folder, files=plan.gone):
        if line.get("trouble"):
            raise RunFailed(f"{host.name}: {line['file']} cannot be removed: {line['trouble']}")
    list(host.ask("write", host.folder, file=RECORD, text=json.dumps(sorted(plan.files))))
    say(f"{host.name}: {len(plan.gone)} files deleted.")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python sync/push.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", metavar="HOST", help="a profile in configs/clusters/ with an ssh: line")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--max-mb", type=float, default=LARGEST, metavar="MB", help=f"of one file; default {LARGEST:g}")
    parser.add_argument("--bwlimit", type=int, metavar="KB", help="kilobytes a second at most")
    parser.add_argument(
        "--delete", action="store_true", help="remove there what was pushed once and is gone here; asks first"
    )
    parser.add_argument("--max-delete", type=int, default=MOST_DELETED, metavar="N", help=f"default {MOST_DELETED}")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    args = parser.parse_args(words)
    if args.bwlimit is not None and args.bwlimit <= 0:
        raise UserError("--bwlimit must be greater than zero.")
    return args


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    args = parse(words)
    host = find_host(args.host)
    files, left_out = choose_files(root, args.max_mb)
    with host:
        plan = make_plan(host, root, files)
        describe(plan, left_out, host)
        if args.dry_run:
            return 0
        push(host, root, plan, [f"--bwlimit={args.bwlimit}"] if args.bwlimit else [])
        if plan.gone and args.delete:
            delete(host, plan, args)
        elif plan.gone:
            say(f"{len(plan.gone)} files of an earlier push are gone here and stay there; --delete removes them.")
    print(f"{host.address}:{host.folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
