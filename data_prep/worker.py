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
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_prep.claims import Claims
from data_prep.commits import WORK, Committed, done, publish
from data_prep.plan import PLAN_NAME, PlannedShard, read_plan
from data_prep.shards import ShardWriter, commit
from data_prep.stage import BadInput, Input, Samples, Stage
from pipeline.errors import RunFailed, UserError

POLL = 0.2  # seconds between looks at what others do, at least
LOOKING = 0.1  # at most this share of the time is spent looking: a shared file system has many who look


class InputChanged(RunFailed):
    """A file is not what the plan froze; the message names it."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to know; pickled to it. ``plan`` is the identity of the plan it works on.

    ``stay``: wait for what others have claimed, in case they die; else leave as soon as nothing is free.
    """

    stage: Stage
    source: Path
    folder: Path
    plan: str
    stay: bool = True


def worker_main(task: Task, tell: Any) -> None:
    """Entry point of the process; what goes wrong is told through ``tell`` (a connection) in one sentence."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor ends us
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
    """Claim and build shards until all are committed, or (unless ``task.stay``) until others have claimed all that are left.

    A shard is written and made durable while the next one is made: at most two are in memory. Raises InputChanged, NotWritten, and
    RunFailed where the folder has been given another plan meanwhile.
    """
    plan = read_plan(task.folder)
    if plan is None or plan.identity != task.plan:
        raise RunFailed(taken_over(task.folder))
    claims = Claims(task.folder / WORK)
    try:
        with ThreadPoolExecutor(1) as writer:
            waiting = sorted(plan.shards, key=lambda shard: -len(shard.inputs))  # large ones first: the end is even
            while waiting := [shard for shard in waiting if done(task.folder, shard) is None]:
                looked = time.monotonic()
                if not _build_what_is_free(task, waiting, claims, writer):
                    if not task.stay:
                        return
                    time.sleep(pause(looked))
    finally:
        claims.close()


def _build_what_is_free(task: Task, waiting: list[PlannedShard], claims: Claims, writer: Executor) -> int:
    """How many of ``waiting`` this process built."""
    count, writing = 0, None
    for shard in waiting:
        if not _take(task, shard, claims):
            continue
        made = make(task, shard)
        if writing is not None:
            writing.result()
        writing = writer.submit(_write, task, shard, made, claims)
        count += 1
    if writing is not None:
        writing.result()
    return count


def pause(looked: float) -> float:
    """Seconds to wait before the next look, given when (``time.monotonic``) the last one began."""
    return max(POLL, (time.monotonic() - looked) / LOOKING)


def _take(task: Task, shard: PlannedShard, claims: Claims) -> bool:
    """Whether the shard is to be built, and by this process."""
    try:
        if done(task.folder, shard) is not None or not claims.take(shard.name):
            return False
    except FileNotFoundError:
        _work_again(task)
        return False
    if done(task.folder, shard) is None:
        return True
    claims.drop(shard.name)
    return False


def _work_again(task: Task) -> None:
    """Others took us for dead and cleared our files away, or finished everything and removed the work folder."""
    (task.folder / WORK).mkdir(exist_ok=True)


@dataclass(frozen=True)
class Made:
    """A shard in memory: what ``assemble`` gave, and the bad inputs."""

    samples: Samples
    summary: dict[str, Any]
    quarantined: tuple[dict[str, str], ...]


def make(task: Task, shard: PlannedShard) -> Made:
    """Read and cut a shard's inputs. Raises InputChanged."""
    loaded, quarantined = [], []
    for item in shard.inputs:
        try:
            loaded.append(task.stage.load(item, reader(task.source, item)))
        except BadInput as error:
            quarantined.append({"input": item.name, "split": item.split, "reason": str(error)})
    samples, summary = task.stage.assemble(loaded)
    return Made(samples, summary, tuple(quarantined))


def _write(task: Task, shard: PlannedShard, made: Made, claims: Claims) -> None:
    """``write`` in its thread, and give the shard back."""
    try:
        write(task, shard, made, claims.token)
    except FileNotFoundError:
        _work_again(task)
    finally:
        claims.drop(shard.name)


def write(task: Task, shard: PlannedShard, made: Made, token: str) -> None:
    """Write a shard and commit it, in this order: tar, index, record. Raises NotWritten, and RunFailed for another plan."""
    with ShardWriter(task.folder / WORK, f"{token}.{shard.name}") as writer:
        for key, fields in made.samples:
            writer.add(key, fields)
        written = writer.finish()
        if _plan_identity(task.folder) != task.plan:
            raise RunFailed(taken_over(task.folder))
        # A record of older content must not stand beside the new tar
        (task.folder / f"{shard.name}.json").unlink(missing_ok=True)
        commit(writer, task.folder, shard.name)
    bad = made.quarantined
    record = Committed(shard.name, shard.split, shard.key, written, len(shard.inputs), bad, made.summary)
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


def taken_over(folder: Path) -> str:
    return f"{folder / PLAN_NAME} has been removed, or replaced by a preparation with other inputs; one folder serves one of them."
