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
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.claims import HEARTBEAT, Claims, depart, enter, leave, stay
from data_prep.commits import WORK, Committed, done, publish, remove_shard, shard_files
from data_prep.hashing import forget_others, hash_inputs
from data_prep.plan import PLAN_NAME, Plan, PlannedShard, make_plan, read_plan
from data_prep.shards import differences
from data_prep.stage import Input, Stage
from data_prep.worker import POLL, Task, pause, taken_over, work_off, worker_main
from pipeline.errors import RunFailed, UserError
from pipeline.files import fsync_folder
from pipeline.manifest import MANIFEST
from pipeline.progress import Progress

ALWAYS_ALLOWED = 3  # quarantined inputs that stop nobody; see allowed_failures


def prepare(stage: Stage, source: Path, folder: Path, workers: int, max_failures: float) -> tuple[Plan, int]:
    """Bring every shard of ``folder`` to what ``source`` and ``stage`` say; the plan, and how many shards had to be built.

    Raises UserError for a wrong source or an unwritable folder, RunFailed where too many inputs are bad or no worker is left.
    The dataset is complete only after ``finish.finish``.
    """
    return _prepare(stage, source, folder, workers, max_failures, secrets.token_hex(4), stays=True)


def assist(stage: Stage, source: Path, folder: Path, workers: int, max_failures: float, attempt: str) -> int:
    """One of many that prepare ``folder`` together, on any number of machines; how many shards were to be built when it came.

    All that share ``attempt`` (a word of hex digits) hash and plan together, once. It ends when others have claimed whatever is
    left, so the shards may not all be there; ``complete`` is for the one who comes last.
    """
    try:
        return _prepare(stage, source, folder, workers, max_failures, attempt, stays=False)[1]
    finally:
        (leave if (folder / MANIFEST).exists() else depart)(folder / WORK)


def complete(
    stage: Stage, source: Path, folder: Path, workers: int, max_failures: float, attempt: str
) -> tuple[Plan, int]:
    """As ``prepare``, after those who ``assist`` in the same attempt: it trusts their plan and builds what they left."""
    return _prepare(stage, source, folder, workers, max_failures, attempt, stays=True)


def _prepare(
    stage: Stage, source: Path, folder: Path, workers: int, max_failures: float, attempt: str, stays: bool
) -> tuple[Plan, int]:
    inputs = _scan(stage, source)  # before anything is written: a wrong --source leaves no trace
    work = _open_work(folder)
    plan = _agree(stage, inputs, source, folder, workers, attempt)
    found = {record.name: record for shard in plan.shards if (record := done(folder, shard)) is not None}
    missing = len(plan.shards) - len(found)
    _refuse_too_many_bad(plan, found, max_failures)
    if missing:
        _run(Task(stage, source, folder, plan.identity, stays), plan, found, min(workers, missing), max_failures)
    stay(work)
    return plan, missing


def _agree(stage: Stage, inputs: list[Input], source: Path, folder: Path, workers: int, attempt: str) -> Plan:
    """The attempt's plan: made and settled by one of those who take part, read by the others."""
    work, claims = folder / WORK, Claims(folder / WORK)
    agreed, hashed = work / f"agreed.{attempt}", None
    try:
        while not agreed.exists():
            if hashed is None:
                with Progress("hashing inputs", "files", 0) as progress:
                    hashed = hash_inputs(inputs, source, work, attempt, workers, progress.update)
            elif claims.take(agreed.name):
                plan = make_plan(stage, hashed, source)
                if not agreed.exists():
                    _settle(plan, folder, workers)
                    publish(work, agreed.name, plan.identity.encode())
                claims.drop(agreed.name)
                forget_others(work, attempt)
            else:
                time.sleep(POLL)
    finally:
        claims.close()
    there = read_plan(folder)
    if there is None or there.identity != agreed.read_text():
        raise RunFailed(taken_over(folder))
    return there


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


def _settle(plan: Plan, folder: Path, workers: int) -> None:
    """Freeze the plan, and drop what does not belong to it or is damaged; every byte that is there is read."""
    if not (folder / PLAN_NAME).exists() or (folder / PLAN_NAME).read_bytes() != plan.to_json():
        (folder / MANIFEST).unlink(missing_ok=True)
        publish(folder, PLAN_NAME, plan.to_json())
    planned = {shard.name for shard in plan.shards}
    for name in {path.name.split(".", 1)[0] for path in folder.glob("*-[0-9]*.*")} - planned:
        remove_shard(folder, name)

    def settled(shard: PlannedShard) -> bool:
        record = done(folder, shard)
        if record is not None and differences(*shard_files(folder, shard.name), record.written):
            remove_shard(folder, shard.name)
            record = None
        return record is not None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        if not all(pool.map(settled, plan.shards)):
            (folder / MANIFEST).unlink(missing_ok=True)  # it names shards that are about to change
            fsync_folder(folder)


def _run(task: Task, plan: Plan, found: dict[str, Committed], workers: int, max_failures: float) -> None:
    """Run ``workers`` processes until every shard is committed, by them or by others, or (see ``Task.stay``) they are of no use.

    With 0 the work is done in this process, where a debugger can follow it.
    """
    if workers == 0:
        work_off(task)
        if not task.stay:
            return
    context = multiprocessing.get_context("spawn")
    crew = []
    for _ in range(workers):
        receiver, sender = context.Pipe(
            duplex=False
        )  # one a worker: a shared queue would hang when its holder is killed
        process = context.Process(target=worker_main, args=(task, sender), daemon=True)
        with _one_thread():
            process.start()
        sender.close()
        crew.append((process, receiver))
    try:
        _supervise(task, plan, found, crew, max_failures)
    finally:
        for process, _ in crew:
            process.terminate()
        for process, _ in crew:
            process.join()


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is started within computes with one thread: a worker has a core, and additions one order.

    It has to stand in the environment that the process is born with: NumPy's BLAS reads it while it is imported.
    """
    before = dict(os.environ)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _supervise(task: Task, plan: Plan, found: dict[str, Committed], crew: list[Any], max_failures: float) -> None:
    """Follow the commits as they appear in the folder; adds them to ``found``."""
    beat = time.monotonic()
    with Progress("preparing", "inputs", plan.inputs, sum(record.inputs for record in found.values())) as progress:
        while True:
            # asked first: what a dying worker commits still counts
            alive = any(process.is_alive() for process, _ in crew)
            looked = time.monotonic()
            there = {
                path.name for path in task.folder.iterdir()
            }  # one request; asking for every shard would be thousands
            for shard in plan.shards:
                if shard.name not in found and f"{shard.name}.json" in there and (record := done(task.folder, shard)):
                    found[shard.name] = record
            progress.update(sum(record.inputs for record in found.values()))
            _refuse_too_many_bad(plan, found, max_failures)
            if len(found) == len(plan.shards):
                return
            for _, receiver in crew:
                _raise_what_is_told(receiver)
            if not alive:
                codes = {process.exitcode for process, _ in crew}
                if not task.stay and 0 in codes:
                    return  # others have the rest
                raise RunFailed(
                    f"all workers have ended (exit {', '.join(sorted(map(str, codes)))}; -9 is a kill, often for want of memory) "
                    f"with {len(plan.shards) - len(found)} of {len(plan.shards)} shards to go; the same command goes on from here."
                )
            if time.monotonic() - beat > HEARTBEAT:
                beat = time.monotonic()
                stay(task.folder / WORK)
            time.sleep(pause(looked))


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
