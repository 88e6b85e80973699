"""``prepare.py --status``: how far a preparation is, from its files alone, on any machine that sees the folder."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from data_prep.claims import living
from data_prep.commits import WORK, done
from data_prep.plan import read_plan
from pipeline.errors import UserError
from pipeline.shards import MANIFEST


def show_status(folder: Path) -> None:
    """Print progress, rate, time left and failures to stdout. UserError where nothing was planned."""
    plan = read_plan(folder)
    if plan is None:
        raise UserError(f"{folder} holds no plan: nothing was prepared there yet; give --source DIR to begin.")
    records = [(shard, record) for shard in plan.shards if (record := done(folder, shard)) is not None]
    inputs = sum(record.inputs for _, record in records)
    bad = sum(len(record.quarantined) for _, record in records)
    state = "complete" if (folder / MANIFEST).exists() else "not complete"
    print(f"{folder}: {state}")
    print(f"  {len(records)} of {len(plan.shards)} shards, {inputs} of {plan.inputs} inputs, {bad} quarantined")
    if state == "complete":
        return
    times = sorted((folder / f"{shard.name}.json").stat().st_mtime for shard, _ in records)
    if len(times) > 1 and times[-1] > times[0]:
        rate = (len(times) - 1) / (times[-1] - times[0])
        left = timedelta(seconds=round((len(plan.shards) - len(records)) / rate))
        print(f"  {60 * rate:.1f} shards a minute, about {left} left at that rate")
    working = living(folder / WORK)
    for shard, token in working.items():
        host, pid, _ = token.split("~")
        print(f"  {shard}: process {pid} on {host}")
    if not working:
        print("  nobody is working on it; the prepare command goes on from here")
