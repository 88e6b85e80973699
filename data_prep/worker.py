"""A worker process: claims shards of a frozen plan, builds them and commits them, until none is left.

Workers know nothing of each other but the files in the dataset's folder, so they may run anywhere that sees it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_prep.claims import Claims
from data_prep.commits import WORK, Committed, done, publish
from data_prep.plan import PLAN_NAME, PlannedShard, read_plan
from data_prep.shards import ShardWriter, commit
from data_prep.stage import BadInput, Input, Stage
from pipeline.errors import RunFailed, UserError

POLL = 0.2  # seconds between looks at shards that others have claimed


class InputChanged(RunFailed):
    """A file is not what the plan froze; the message names it."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to know; pickled to it. ``plan`` is the identity of the plan it works on."""

    stage: Stage
    source: Path
    folder: Path
    plan: str


def worker_main(task: Task, tell: Any) -> None:
    """Entry point of the process; what goes wrong is told through ``tell`` (a connection) in one sentence."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor ends us
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before torch is imported: one order of additions
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work_off(task)
    except (RunFailed, UserError) as error:
        tell.send(str(error))
        sys.exit(1)
    except OSError as error:
        tell.send(mishap(error, task.folder))
        sys.exit(1)


def work_off(task: Task) -> None:
    """Claim and build shards until all are committed; waits for shards that other living processes have claimed."""
    plan = read_plan(task.folder)
    if plan is None or plan.identity != task.plan:
        raise RunFailed(_taken_over(task.folder))
    claims = Claims(task.folder / WORK)
    try:
        waiting = sorted(plan.shards, key=lambda shard: -len(shard.inputs))  # large ones first: the end is even
        while waiting := [shard for shard in waiting if done(task.folder, shard) is None]:
            if not sum(_take_and_build(task, shard, claims) for shard in waiting):
                time.sleep(POLL)
    finally:
        claims.close()


def _take_and_build(task: Task, shard: PlannedShard, claims: Claims) -> bool:
    """Whether this process built the shard."""
    try:
        if done(task.folder, shard) is not None or not claims.take(shard.name):
            return False
        try:
            if done(task.folder, shard) is not None:
                return False
            build(task, shard, claims.token)
        finally:
            claims.drop()
    except FileNotFoundError:
        # Others took us for dead and cleared our files away, or finished everything and removed the work folder.
        (task.folder / WORK).mkdir(exist_ok=True)
        return False
    return True


def build(task: Task, shard: PlannedShard, token: str) -> None:
    """Build one shard and commit it, in this order: tar, index, record.

    Raises InputChanged, NotWritten, and RunFailed where the folder has been given another plan meanwhile.
    """
    loaded, quarantined = [], []
    for item in shard.inputs:
        try:
            loaded.append(task.stage.load(item, reader(task.source, item)))
        except BadInput as error:
            quarantined.append({"input": item.name, "split": item.split, "reason": str(error)})
    samples, summary = task.stage.assemble(loaded)
    with ShardWriter(task.folder / WORK, f"{token}.{shard.name}") as writer:
        for key, fields in samples:
            writer.add(key, fields)
        written = writer.finish()
        if _plan_identity(task.folder) != task.plan:
            raise RunFailed(_taken_over(task.folder))
        (task.folder / f"{shard.name}.json").unlink(
            missing_ok=True
        )  # a record of older content must not stand beside the new tar
        commit(writer, task.folder, shard.name)
    record = Committed(shard.name, shard.split, shard.key, written, len(shard.inputs), tuple(quarantined), summary)
    publish(task.folder, f"{shard.name}.json", record.to_json())


def reader(source: Path, item: Input) -> Callable[[str], bytes]:
    """A function from an input's path to its bytes. It raises BadInput for a file that cannot be read, InputChanged for another content."""
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


def mishap(error: OSError, folder: Path) -> str:
    """What a full disk and its like come down to, in one sentence."""
    return f"{error.filename or folder}: {error.strerror or error}; once that is mended, the same command goes on from here."


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # what we were writing is swept up by the next attempt


def _plan_identity(folder: Path) -> str:
    try:
        return xxhash.xxh3_128_hexdigest((folder / PLAN_NAME).read_bytes())
    except FileNotFoundError:
        return ""


def _taken_over(folder: Path) -> str:
    return f"{folder / PLAN_NAME} has been removed, or replaced by a preparation with other inputs; one folder serves one of them."
