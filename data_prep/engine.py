"""Plan -> claim a shard -> write aside -> read back -> commit: the same bytes however many work on it and die over it.

    <data root>/<recipe>[-<codec>]/
      plan.json               frozen before the work begins (see ``plan``)
      train-000000.tar        \\
      train-000000.index.npy   } renamed to these names in this order, each whole; the last is the commit (see ``commits``)
      train-000000.json       /
      quarantine.jsonl, README.md, manifest.json        made from the commits when all are there (see ``finish``)
      .work/                  claims and unfinished files; gone after success

Killing anything at any moment loses at most the shards in the making; ``worker`` says how a shard is built. This module plans, settles
what is there already, and watches over local worker processes.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_prep.claims import enter
from data_prep.commits import WORK, Committed, done, publish, remove_shard, shard_files
from data_prep.plan import HASH_CACHE, PLAN_NAME, Plan, PlannedShard, make_plan
from data_prep.progress import Progress
from data_prep.shards import differences
from data_prep.stage import Input, Stage
from data_prep.worker import POLL, Task, work_off, worker_main
from pipeline.errors import RunFailed, UserError
from pipeline.files import fsync_folder
from pipeline.shards import MANIFEST

ALWAYS_ALLOWED = 3  # quarantined inputs that stop nobody; see allowed_failures


def prepare(stage: Stage, source: Path, folder: Path, workers: int, max_failures: float) -> tuple[Plan, int]:
    """Bring every shard of ``folder`` to what ``source`` and ``stage`` say; the plan, and how many shards had to be built.

    Raises UserError for a wrong source or an unwritable folder, RunFailed where too many inputs are bad or no worker is left.
    The dataset is complete only after ``finish.finish``.
    """
    inputs = _scan(stage, source)  # before anything is written: a wrong --source leaves no trace
    work = _open_work(folder)
    with Progress("hashing inputs", "files", 0) as progress:
        plan = make_plan(stage, inputs, source, work / HASH_CACHE, workers, progress.update)
    found = _settle(plan, folder, workers)
    missing = len(plan.shards) - len(found)
    if missing:
        (folder / MANIFEST).unlink(missing_ok=True)  # it names shards that are about to change
        fsync_folder(folder)
    _refuse_too_many_bad(plan, found, max_failures)
    if missing:
        _run(Task(stage, source, folder, plan.identity), plan, found, min(workers, missing), max_failures)
    return plan, missing


def allowed_failures(inputs: int, fraction: float) -> int:
    """How many inputs may be quarantined before the job stops.

    ``fraction`` of them. But a few bad files must not stop a small set, so three always may, yet never half of all: that would
    mean that the reader or the folder is wrong, not the files. A fraction of 0 means none at all.
    """
    if fraction == 0:
        return 0
    return max(int(fraction * inputs), min(ALWAYS_ALLOWED, (inputs - 1) // 2))


def _scan(stage: Stage, source: Path) -> list[Input]:
    try:
        return stage.scan(source)
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be listed: {error.strerror}.") from error


def _open_work(folder: Path) -> Path:
    try:
        enter(folder / WORK)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; choose another data root with --out."
        ) from error
    return folder / WORK


def _settle(plan: Plan, folder: Path, workers: int) -> dict[str, Committed]:
    """Freeze the plan, drop what does not belong to it or is damaged; the records of the shards that are done, by name."""
    if not (folder / PLAN_NAME).exists() or (folder / PLAN_NAME).read_bytes() != plan.to_json():
        (folder / MANIFEST).unlink(missing_ok=True)
        publish(folder, PLAN_NAME, plan.to_json())
    planned = {shard.name for shard in plan.shards}
    for name in {path.name.split(".", 1)[0] for path in folder.glob("*-[0-9]*.*")} - planned:
        remove_shard(folder, name)

    def settled(shard: PlannedShard) -> Committed | None:
        record = done(folder, shard)
        if record is not None and differences(*shard_files(folder, shard.name), record.written):
            remove_shard(folder, shard.name)
            return None
        return record

    with ThreadPoolExecutor(max(1, workers)) as pool:
        records = pool.map(settled, plan.shards)
        return {record.name: record for record in records if record is not None}


def _run(task: Task, plan: Plan, found: dict[str, Committed], workers: int, max_failures: float) -> None:
    """Run ``workers`` processes until every shard is committed, by them or by others that share the folder.

    With 0 the work is done in this process, where a debugger can follow it.
    """
    if workers == 0:
        work_off(task)
    context = multiprocessing.get_context("spawn")
    crew = []
    for _ in range(workers):
        receiver, sender = context.Pipe(
            duplex=False
        )  # one a worker: a shared queue would hang when its holder is killed
        process = context.Process(target=worker_main, args=(task, sender), daemon=True)
        process.start()
        sender.close()
        crew.append((process, receiver))
    try:
        _supervise(task.folder, plan, found, crew, max_failures)
    finally:
        for process, _ in crew:
            process.terminate()
        for process, _ in crew:
            process.join()


def _supervise(folder: Path, plan: Plan, found: dict[str, Committed], crew: list[Any], max_failures: float) -> None:
    """Follow the commits as they appear in ``folder``; adds them to ``found``."""
    with Progress("preparing", "inputs", plan.inputs, sum(record.inputs for record in found.values())) as progress:
        while True:
            alive = any(
                process.is_alive() for process, _ in crew
            )  # asked first: what a dying worker commits still counts
            for shard in plan.shards:
                if shard.name not in found and (record := done(folder, shard)) is not None:
                    found[shard.name] = record
            progress.update(sum(record.inputs for record in found.values()))
            _refuse_too_many_bad(plan, found, max_failures)
            if len(found) == len(plan.shards):
                return
            for _, receiver in crew:
                _raise_what_is_told(receiver)
            if not alive:
                codes = ", ".join(sorted({str(process.exitcode) for process, _ in crew}))
                raise RunFailed(
                    f"all workers have ended (exit {codes}; -9 is a kill, often for want of memory) with "
                    f"{len(plan.shards) - len(found)} of {len(plan.shards)} shards to go; the same command goes on from here."
                )
            time.sleep(POLL)


def _raise_what_is_told(receiver: Any) -> None:
    try:
        if receiver.poll():
            raise RunFailed(receiver.recv())
    except (EOFError, ConnectionResetError):
        return  # ended without a word


def _refuse_too_many_bad(plan: Plan, found: dict[str, Committed], max_failures: float) -> None:
    bad = [entry for _, record in sorted(found.items()) for entry in record.quarantined]
    allowed = allowed_failures(plan.inputs, max_failures)
    if len(bad) > allowed:
        shown = "\n".join(f"  {entry['input']}: {entry['reason']}" for entry in bad[:10])
        more = f"\n  ... and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise RunFailed(
            f"{len(bad)} of {plan.inputs} inputs are bad, at most {allowed} may be; stopped.\n{shown}{more}\n"
            "Repair them, or allow more with --max-failures FRACTION; the same command goes on from here."
        )
