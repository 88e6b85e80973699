"""``prepare.py --status``: how far a preparation is, from its files alone, on any machine that sees the folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from data_prep.claims import living
from data_prep.commits import WORK, Committed, done
from data_prep.hashing import files_hashed
from data_prep.plan import Plan, read_plan
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST

RECENT = 64  # commits that the rate is told from: what lies before a pause says nothing of now
SHOWN = 5  # quarantined inputs


def show_status(folder: Path, queue: Sequence[str] = ()) -> None:
    """Print progress, rate, time left, failures and who is at work to stdout. UserError where nothing was begun.

    ``queue``: what a scheduler says of it.
    """
    plan, working = read_plan(folder), living(folder / WORK)
    if plan is None and not working and not queue:
        raise UserError(f"{folder} holds no plan: nothing was prepared there yet; give --source DIR to begin.")
    complete = (folder / MANIFEST).exists()
    state = "complete" if complete else "not planned yet" if plan is None else "not complete"
    print(f"{folder}: {state}")
    for line in [*(_progress(folder, plan) if plan else []), *(() if complete else _at_work(folder, working)), *queue]:
        print(f"  {line}")
    if not complete and not working and not queue:
        print("  nobody is working on it; the prepare command goes on from here")


def _progress(folder: Path, plan: Plan) -> list[str]:
    records = [record for shard in plan.shards if (record := done(folder, shard)) is not None]
    inputs = sum(record.inputs for record in records)
    bad = [entry for record in records for entry in record.quarantined]
    lines = [
        f"{len(records)} of {len(plan.shards)} shards, {inputs} of {plan.inputs} inputs, {len(bad)} quarantined",
        *(f"quarantined: {entry['input']}: {entry['reason']}" for entry in bad[:SHOWN]),
    ]
    if inputs < plan.inputs and (rate := _rate(folder, records)):
        left = timedelta(seconds=round((plan.inputs - inputs) / rate))
        lines.append(f"{60 * rate:.1f} inputs a minute, about {left} left at that rate")
    return lines


def _rate(folder: Path, records: list[Committed]) -> float:
    """Inputs a second over the latest commits; 0 where there are too few to tell."""
    commits = sorted(((folder / f"{record.name}.json").stat().st_mtime, record.inputs) for record in records)
    (began, _), *later = commits[-RECENT:] or [(0.0, 0)]
    seconds = later[-1][0] - began if later else 0.0
    return sum(inputs for _, inputs in later) / seconds if seconds else 0.0


def _at_work(folder: Path, working: dict[str, str]) -> list[str]:
    """One line for each claim: a shard, or a part of the planning."""
    lines = []
    for claim, token in working.items():
        host, pid, _ = token.split("~")
        what = "hashing inputs" if claim.startswith("hashes.") else "planning" if claim.startswith("agreed.") else claim
        lines.append(f"{what}: process {pid} on {host}")
    if any(claim.startswith("hashes.") for claim in working):
        lines.append(f"{files_hashed(folder / WORK)} files hashed so far")
    return lines
