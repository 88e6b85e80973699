"""Runs as they lie on a cluster, with a checkpoint and its manifest, and what is compared of two folders."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pipeline.files import hash_file
from pipeline.runs import RunFolder
from tests.monitoring.run_factory import add_samples, finished_run
from tests.sync.far_side import FarSide

RUN = "dismix_demo/1f3a9c2e"


def add_checkpoint(run: RunFolder, step: int, size: int = 5000) -> Path:
    """A folder as ``pipeline.checkpoint`` leaves it, with bytes in place of tensors."""
    folder = run.checkpoints / f"step_{step:09d}"
    folder.mkdir()
    names = ("model.safetensors", "ema.safetensors", "optimizer.main.safetensors", "state.json")
    for name in names:
        (folder / name).write_bytes(os.urandom(size))
    entries = {n: {"size": size, "xxh3_128": hash_file(folder / n)} for n in names}
    (folder / "MANIFEST.json").write_text(json.dumps({"format": 1, "files": entries}))
    return folder


def whole_run(far: FarSide, identity: str = "1f3a9c2e", name: str = "dismix_demo", steps: int = 20) -> RunFolder:
    run = finished_run(far.runs, identity, name, steps)
    add_samples(run)
    (run.logs / "7_0_log.out").write_text("step 1\n")
    (run.code / "jobs").mkdir(parents=True)
    (run.code / "jobs" / "launch.py").write_text("print()\n")
    (run.code / ".hash").write_text("c0de")
    for step in (10, 20):
        add_checkpoint(run, step)
    return run


def with_environment(far: FarSide) -> None:
    """Give the cluster's project an environment of its own, as `make setup` does: its hash is xxh3 then."""
    (far.project / ".venv" / "bin").mkdir(parents=True)
    interpreter = far.project / ".venv" / "bin" / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name, but for what sync keeps for itself."""
    return {
        os.fsdecode(os.fsencode(path.relative_to(folder))): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".sync" not in path.relative_to(folder).parts
    }


def only(tree: dict[str, bytes], *tops: str) -> dict[str, bytes]:
    return {name: payload for name, payload in tree.items() if name.split("/")[2] in tops}
