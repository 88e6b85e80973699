"""Plan -> claim a shard -> write aside -> read back -> commit: the same bytes however many work on it and die over it.

    <data root>/<recipe>[-<codec>]/
      plan.json               frozen before the work begins (see ``plan``)
      train-000000.tar        \\
      train-000000.index.npy   } renamed to these names in this order, each whole;
      train-000000.json       /  the last is the commit: it carries the planned key, sizes, hashes, quarantined inputs, a summary
      quarantine.jsonl, README.md, manifest.json        made from the commits when all are there (see ``finish``)
      .work/                  claims and unfinished files, named after their process; gone after success

What was committed for other inputs, another recipe or older code does not carry the planned key and is built again; nothing else is.
Killing anything at any moment loses at most the shards in the making.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_prep.claims import Claims, owner_token, sweep
from data_prep.plan import HASH_CACHE, PLAN_NAME, Plan, PlannedShard, make_plan, read_plan
from data_prep.progress import Progress
from data_prep.shards import NotWritten, ShardWriter, Written, commit, differences
from data_prep.stage import BadInput, Input, Stage
from pipeline.errors import RunFailed, UserError
from pipeline.files import fsync_folder

WORK = ".work"
ALWAYS_ALLOWED = 3  # quarantined inputs that stop nobody; see allowed_failures
POLL = 0.2  # seconds
SHARD_SUFFIXES = (".tar", ".index.npy", ".json")


class InputChanged(Exception):
    """A file is not what the plan froze; the message names it."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to know; pickled to it."""

    stage: Stage
    source: Path
    folder: Path
    plan: str  # identity of the plan it works on


@dataclass(frozen=True)
class Committed:
    """A shard's commit record, ``<name>.json``."""

    name: str
    split: str
    key: str
    written: Written
    inputs: int
    quarantined: tuple[dict[str, str], ...]  # input, reason
    summary: dict[str, Any]


def read_committed(folder: Path, name: str) -> Committed | None:
    """The commit record of a shard; None where there is none or it is not whole."""
    try:
        tree = json.loads((folder / f"{name}.json").read_bytes())
        written, quarantined = Written(**tree.pop("written")), tuple(tree.pop("quarantined"))
        return Committed(written=written, quarantined=quarantined, **tree)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None


def done(folder: Path, shard: PlannedShard) -> Committed | None:
    """The record of ``shard`` where it is committed with the planned key."""
    record = read_committed(folder, shard.name)
    return record if record is not None and record.key == shard.key else None


def allowed_failures(inputs: int, fraction: float) -> int:
    """How many inputs may be quarantined before the job stops.

    ``fraction`` of them; but a few bad files must not stop a small set, so three always may (yet never half of all, which would
    mean that the reader or the folder is wrong). A fraction of 0 means none at all.
    """
    if fraction == 0:
        return 0
    return max(int(fraction * inputs), min(ALWAYS_ALLOWED, (inputs - 1) // 2))


def prepare(stage: Stage, source: Path, folder: Path, workers: int, max_failures: float) -> tuple[Plan, int]:
    """Bring every shard of ``folder`` to what ``source`` and ``stage`` say; the plan, and how many shards had to be built.

    Raises UserError for a wrong source or an unwritable folder, RunFailed where too many inputs are bad or no worker is left.
    The dataset is complete only after ``finish.finish``.
    """
    work = _open_work(folder)
    with Progress("hashing inputs", "files", 0) as progress:
        plan = make_plan(stage, source, work / HASH_CACHE, workers, lambda n, total: progress.update(n, total=total))
    missing = _settle(plan, folder, work, workers)
    if missing:
        (folder / "manifest.json").unlink(missing_ok=True)  # it names shards that are about to change
        fsync_folder(folder)
        _run(Task(stage, source, folder, plan.identity), plan, min(workers, missing), max_failures)
    _check_cap(plan, folder, max_failures)
    return plan, missing


def _open_work(folder: Path) -> Path:
    work = folder / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        probe = work / f"probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; choose another data root with --out."
        ) from error
    sweep(work)
    return work


def _settle(plan: Plan, folder: Path, work: Path, workers: int) -> int:
    """Freeze the plan, drop what does not belong to it or is damaged; the number of shards still to build."""
    if not (folder / PLAN_NAME).exists() or (folder / PLAN_NAME).read_bytes() != plan.to_json():
        (folder / "manifest.json").unlink(missing_ok=True)
        publish(work, folder, PLAN_NAME, plan.to_json())
    planned = {shard.name: shard for shard in plan.shards}
    for name in sorted({path.name.split(".", 1)[0] for path in folder.glob("*-[0-9]*.*")} - planned.keys()):
        remove_shard(folder, name)

    def intact(shard: PlannedShard) -> bool:
        record = done(folder, shard)
        if record is None:
            return False
        if differences(*shard_files(folder, shard.name), record.written):
            remove_shard(folder, shard.name)
            return False
        return True

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return sum(not whole for whole in pool.map(intact, plan.shards))


def remove_shard(folder: Path, name: str) -> None:
    """Uncommit first, so that no record ever stands for a missing tar."""
    for suffix in reversed(SHARD_SUFFIXES):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def shard_files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.tar", folder / f"{name}.index.npy"


def publish(work: Path, folder: Path, name: str, payload: bytes) -> None:
    """Write a small file whole: aside, durable, renamed."""
    aside = work / f"{owner_token()}.{name}"
    with aside.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / name)
    fsync_folder(folder)


# --- the supervisor ---------------------------------------------------------------------------------------------------------------


def _run(task: Task, plan: Plan, workers: int, max_failures: float) -> None:
    """Run ``workers`` processes until every shard is committed, by them or by others that share the folder."""
    context = multiprocessing.get_context("spawn")
    crew = []
    for _ in range(max(1, workers)):
        receiver, sender = context.Pipe(
            duplex=False
        )  # one a worker: a shared queue would hang when its holder is killed
        process = context.Process(target=worker_main, args=(task, sender), daemon=True)
        process.start()
        sender.close()
        crew.append((process, receiver))
    try:
        _supervise(task, plan, crew, max_failures)
    finally:
        for process, _ in crew:
            process.terminate()
        for process, _ in crew:
            process.join()


def _supervise(task: Task, plan: Plan, crew: list[Any], max_failures: float) -> None:
    waiting = list(plan.shards)
    finished = plan.inputs - sum(len(shard.inputs) for shard in waiting if done(task.folder, shard) is None)
    with Progress("preparing", "inputs", plan.inputs, finished) as progress:
        while waiting:
            waiting = [shard for shard in waiting if done(task.folder, shard) is None]
            progress.update(plan.inputs - sum(len(shard.inputs) for shard in waiting))
            _check_cap(plan, task.folder, max_failures)
            alive = [process for process, _ in crew if process.is_alive()]
            for _, receiver in crew:
                _raise_told(receiver)
            if waiting and not alive:
                codes = sorted({str(process.exitcode) for process, _ in crew})
                raise RunFailed(
                    f"all workers ended (exit {', '.join(codes)}; -9 is a kill, often for want of memory) with {len(waiting)} of "
                    f"{len(plan.shards)} shards to go; the same command goes on from here."
                )
            time.sleep(POLL if waiting else 0)


def _raise_told(receiver: Any) -> None:
    try:
        if receiver.poll():
            raise RunFailed(receiver.recv())
    except (EOFError, ConnectionResetError):
        return  # ended without a word


def _check_cap(plan: Plan, folder: Path, max_failures: float) -> None:
    records = [record for shard in plan.shards if (record := done(folder, shard)) is not None]
    bad = [entry for record in records for entry in record.quarantined]
    allowed = allowed_failures(plan.inputs, max_failures)
    if len(bad) > allowed:
        shown = "\n".join(f"  {entry['input']}: {entry['reason']}" for entry in bad[:10])
        more = f"\n  ... and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise RunFailed(
            f"{len(bad)} of {plan.inputs} inputs are bad, at most {allowed} may be; stopped.\n{shown}{more}\n"
            "Repair them, or allow more with --max-failures FRACTION; the same command goes on from here."
        )


# --- the worker -------------------------------------------------------------------------------------------------------------------


def worker_main(task: Task, tell: Any) -> None:
    """A worker process: build shards until none is left; what goes wrong is told through ``tell`` in one sentence."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor ends us
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }  # before torch is imported: one thread, one order of additions
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work_off(task)
    except (RunFailed, InputChanged, NotWritten) as error:
        tell.send(str(error))
        sys.exit(1)
    except OSError as error:
        tell.send(
            f"{error.filename or task.folder}: {error.strerror}; the same command goes on from here once that is mended."
        )
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # what we were writing is swept up by the next attempt


def work_off(task: Task) -> None:
    """Claim and build shards until all are committed; waits for shards that other living processes have claimed."""
    plan = read_plan(task.folder)
    if plan is None or plan.identity != task.plan:
        raise RunFailed(_taken_over(task.folder))
    claims = Claims(task.folder / WORK)
    try:
        waiting = sorted(plan.shards, key=lambda shard: -len(shard.inputs))  # large ones first: the end is even
        while waiting := [shard for shard in waiting if done(task.folder, shard) is None]:
            took = [shard for shard in waiting if _take_and_build(task, shard, claims)]
            if not took:
                time.sleep(POLL)
    finally:
        claims.close()


def _take_and_build(task: Task, shard: PlannedShard, claims: Claims) -> bool:
    try:
        if done(task.folder, shard) is not None or not claims.take(shard.name):
            return False
        try:
            if done(task.folder, shard) is None:
                build(task, shard, claims.token)
        finally:
            claims.drop()
    except FileNotFoundError:
        if (task.folder / WORK).is_dir() and done(task.folder, shard) is None:
            raise
        return False  # others took us for dead, finished the shard (or all of them) and cleared our files away
    return True


def build(task: Task, shard: PlannedShard, token: str) -> None:
    """Build one shard and commit it."""
    loaded, quarantined = [], []
    for item in shard.inputs:
        try:
            loaded.append(task.stage.load(item, _reader(task.source, item)))
        except BadInput as error:
            quarantined.append({"input": item.name, "split": item.split, "reason": str(error)})
    samples, summary = task.stage.assemble(loaded)
    work = task.folder / WORK
    with ShardWriter(work, f"{token}.{shard.name}") as writer:
        for key, fields in samples:
            writer.add(key, fields)
        written = writer.finish()
        if _plan_identity(task.folder) != task.plan:
            raise RunFailed(_taken_over(task.folder))
        remove = task.folder / f"{shard.name}.json"
        remove.unlink(missing_ok=True)  # a record of older content must not stand beside the new tar
        commit(writer, task.folder, shard.name)
    record = Committed(shard.name, shard.split, shard.key, written, len(shard.inputs), tuple(quarantined), summary)
    publish(work, task.folder, f"{shard.name}.json", record_json(record))


def record_json(record: Committed) -> bytes:
    return (json.dumps(asdict(record), sort_keys=True, allow_nan=False) + "\n").encode()


def _reader(source: Path, item: Input) -> Callable[[str], bytes]:
    planned = {file.path: file for file in item.files}

    def read(path: str) -> bytes:
        file = planned[path]
        if not file.hash:
            raise BadInput(f"{path} could not be read when the inputs were listed")
        try:
            raw = (source / path).read_bytes()
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from error
        if xxhash.xxh3_128_hexdigest(raw) != file.hash:
            raise InputChanged(
                f"{source / path} has changed since the plan was made; the same command makes a new plan."
            )
        return raw

    return read


def _plan_identity(folder: Path) -> str:
    return xxhash.xxh3_128_hexdigest((folder / PLAN_NAME).read_bytes())


def _taken_over(folder: Path) -> str:
    return f"{folder / PLAN_NAME} has been replaced by a preparation with other inputs; one folder serves one of them."


def close_work(folder: Path) -> None:
    """Everything is committed: remove the work folder."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
