"""Runs as training leaves them, written with the real classes, in milliseconds instead of minutes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline import processes
from pipeline.files import read_json, write_atomic, write_json
from pipeline.journal import Journal, read_journals
from pipeline.runs import RunFolder

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "dismix_demo.yaml"
PNG = b"\x89PNG\r\n\x1a\n not really"
WAV = b"RIFF not really"
LARGEST = 1.7976931348623157e308  # what MLflow keeps of infinity

Metrics = Callable[[int], Mapping[str, float]]


def curve(step: int) -> dict[str, float]:
    return {"train/loss": 1 / step, "train/learning_rate": 1e-3 * step}


def make_run(root: Path, name: str = "dismix_demo", identity: str = "1f3a9c2e") -> RunFolder:
    run = RunFolder(root / name / identity)
    run.create()
    write_atomic(run.config_file, CONFIG.read_bytes())
    run.record("created", config={})
    run.record("code", hash="c0de" * 8, commit="ab" * 20, uncommitted_changes=True, left_out=[])
    return run


def attempt(
    run: RunFolder, after: int, until: int, metrics: Metrics = curve, *, host: str = "n1", job: str | None = None
) -> None:
    """One attempt that trained the steps ``after + 1 .. until`` and has no end yet. The lease names this process."""
    number = run.claim_attempt()
    run.record(
        "attempt", attempt=number, after_step=after, host=host, pid=os.getpid(), world_size=2, nodes=1, job_id=job, data="da7a"
    )  # fmt: skip
    journal = Journal(run.journal_file(number), number, after)
    for step in range(after + 1, until + 1):
        journal.log(step, metrics(step))
    journal.close()


def grow(run: RunFolder, steps: range, metrics: Metrics = curve) -> None:
    """More steps of the newest attempt."""
    newest = sorted(run.metrics.glob("attempt_*.jsonl"))[-1]
    with newest.open("ab") as file:
        scratch = newest.with_name("scratch.jsonl")
        journal = Journal(scratch, 0, 0)
        for step in steps:
            journal.log(step, metrics(step))
        journal.close()
        file.write(b"".join(scratch.read_bytes().splitlines(keepends=True)[1:]))
        scratch.unlink()


def end(run: RunFolder, reason: str, step: int, **facts: object) -> None:
    run.record("end", attempt=1, reason=reason, step=step, gained=step, **facts)


def kill_writer(run: RunFolder) -> None:
    """Let the lease name a process that is no more."""
    lease = read_json(run.lease_file)
    write_json(run.lease_file, {**lease, "pid": 2**22 + 1, "process": f"{processes.host()}~{2**22 + 1}~0"})


def add_samples(run: RunFolder) -> None:
    folder = run.samples / "step_000000100"
    folder.mkdir()
    (folder / "mixture.png").write_bytes(PNG)
    (folder / "mixture.wav").write_bytes(WAV)
    (run.figures / "swap.png").write_bytes(PNG)


def finished_run(root: Path, identity: str = "1f3a9c2e", name: str = "dismix_demo", steps: int = 20) -> RunFolder:
    run = make_run(root, name, identity)
    attempt(run, 0, steps)
    end(run, "complete", steps)
    return run


def expected(run: RunFolder) -> dict[str, list[tuple[int, int, str]]]:
    """By metric, the points MLflow must show: (step, time in ms, value), values as text because NaN equals nothing."""
    points: dict[str, list[tuple[int, int, str]]] = {}
    for point in read_journals(run.metrics):
        for name, value in point.metrics.items():
            kept = math.copysign(LARGEST, value) if math.isinf(value) else value + 0.0  # SQLite knows one zero
            points.setdefault(name, []).append((point.step, round(point.time * 1000), repr(kept)))
    return {name: sorted(rows) for name, rows in points.items()}
