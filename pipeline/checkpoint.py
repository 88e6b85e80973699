"""Checkpoints that are whole or not there: written aside, fsynced, with a manifest of hashes, then renamed.

    checkpoints/step_000010000/
      model.safetensors  ema.safetensors  optimizer.main.safetensors ...   one file a part: its tensors
      state.json          everything that is not a tensor, and where in the data the run stands
      MANIFEST.json       size and xxh3_128 of every file above; written last

Loading verifies every byte. A bad checkpoint is set aside under a name that says so and the one before it is used, loudly.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import Keep
from pipeline.errors import UserError
from pipeline.files import fsync_folder, hash_file, read_json

FOLDER = re.compile(r"step_(\d{9})")
TEMPORARY = ".writing_"
MANIFEST = "MANIFEST.json"
TENSOR = "__tensor__"


class BadCheckpoint(Exception):
    """A checkpoint that is not what was written; names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """``parts``: nested state dicts by name (model, ema, optimizer.main...); ``state``: JSON facts, of them ``step``."""

    step: int
    parts: dict[str, Any]
    state: dict[str, Any]


def folder_name(step: int) -> str:
    return f"step_{step:09d}"


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` under ``folder``; when this returns it is complete and durable. One that is there already stays.

    Raises OSError where it could not be written; ``sweep`` removes what is left of it.
    """
    final = folder / folder_name(checkpoint.step)
    if final.exists():
        return final
    aside = folder / f"{TEMPORARY}{final.name}_{os.getpid()}"
    aside.mkdir()
    skeletons = {}
    for name, part in checkpoint.parts.items():
        tensors: dict[str, Tensor] = {}
        skeletons[name] = _take_tensors(part, tensors, name)
        try:
            save_file(tensors, aside / f"{name}.safetensors")
        except SafetensorError as error:  # its word for a disk that takes no more
            raise OSError(errno.EIO, str(error), str(aside)) from error
    text = json.dumps({**checkpoint.state, "step": checkpoint.step, "parts": skeletons}, indent=1)
    (aside / "state.json").write_text(text)
    entries = {p.name: {"size": p.stat().st_size, "xxh3_128": hash_file(p)} for p in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}, indent=1))
    for path in aside.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    fsync_folder(aside)
    aside.rename(final)
    fsync_folder(folder)
    return final


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder, every byte verified; BadCheckpoint names what is wrong."""
    verify(path)
    try:
        state = json.loads((path / "state.json").read_text())
        skeletons = state.pop("parts")
        parts = {name: _put_tensors(tree, load_file(path / f"{name}.safetensors")) for name, tree in skeletons.items()}
        return Checkpoint(state["step"], parts, state)
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise BadCheckpoint(f"{path}: {type(error).__name__}: {error}") from error


def verify(path: Path) -> None:
    """Check size and hash of every file against the manifest; BadCheckpoint names the first that differs."""
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise BadCheckpoint(f"{path / MANIFEST} is missing or damaged")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise BadCheckpoint(f"{file} is missing")
        if file.stat().st_size != entry["size"]:
            raise BadCheckpoint(f"{file} has {file.stat().st_size} bytes, its manifest says {entry['size']}")
        if hash_file(file) != entry["xxh3_128"]:
            raise BadCheckpoint(f"{file} is not the bytes that were written (xxh3_128 differs)")


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint under ``folder``, ascending."""
    return sorted(int(m[1]) for p in folder.iterdir() if (m := FOLDER.fullmatch(p.name)))


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, and a sentence for each newer one that was bad and has been set aside."""
    rejected: list[str] = []
    for step in reversed(steps(folder)):
        path = folder / folder_name(step)
        try:
            return load(path), rejected
        except BadCheckpoint as error:
            aside = _free_name(folder / f"bad_{path.name}")
            path.rename(aside)
            rejected.append(f"{error}; set aside as {aside.name}")
    return None, rejected


def sweep(folder: Path) -> list[str]:
    """Remove what writers that were killed left half written. Call only while holding the run's lease."""
    left = [p for p in folder.iterdir() if p.name.startswith(TEMPORARY)]
    for path in left:
        shutil.rmtree(path)
    return [p.name for p in left]


def prune(folder: Path, keep: Keep) -> None:
    """Remove checkpoints that ``keep`` does not name; a folder is renamed first, so that none is ever half there."""
    present = steps(folder)
    kept = set(present[-keep.last :])
    if keep.every:
        kept |= {s for s in present if s % keep.every == 0}
    if keep.best:
        ranked = sorted(_validation_losses(folder, present).items(), key=lambda item: item[1])
        kept |= {step for step, _ in ranked[: keep.best]}
    for step in set(present) - kept:
        doomed = folder / f"{TEMPORARY}{folder_name(step)}_pruned"
        (folder / folder_name(step)).rename(doomed)
        shutil.rmtree(doomed)


def _validation_losses(folder: Path, present: list[int]) -> dict[int, float]:
    states = {step: read_json(folder / folder_name(step) / "state.json") for step in present}
    return {step: s["validation_loss"] for step, s in states.items() if s and s.get("validation_loss") is not None}


def _free_name(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}_{i}") for i in range(1, 1000))]
    return next(p for p in candidates if not p.exists())


def _take_tensors(tree: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A JSON skeleton of ``tree``; its tensors go to ``tensors`` under their path. Integer keys (optimizer states) are marked."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().cpu().contiguous()
        return {TENSOR: path}
    if isinstance(tree, Mapping):
        pairs = [
            [key, _take_tensors(value, tensors, f"{path}.{key}" if path else str(key))] for key, value in tree.items()
        ]
        return {"__mapping__": pairs} if any(not isinstance(k, str) for k in tree) else dict(pairs)
    if isinstance(tree, list | tuple):
        return [_take_tensors(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(tree).__name__} (at '{path}')")


def _put_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if TENSOR in tree:
            return tensors[tree[TENSOR]]
        if "__mapping__" in tree:
            return {key: _put_tensors(value, tensors) for key, value in tree["__mapping__"]}
        return {key: _put_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_put_tensors(value, tensors) for value in tree]
    return tree


def load_weights(module: nn.Module, run: Path) -> int:
    """Start ``module`` from the newest good checkpoint of another run (its averaged weights where it has them); returns the step.

    Raises UserError where that run has no checkpoint or is of another architecture.
    """
    folder = run / "checkpoints"
    newest, _ = load_newest(folder) if folder.is_dir() else (None, [])
    if newest is None:
        raise UserError(f"{run} has no checkpoint to start from; finish that run first.")
    try:
        module.load_state_dict({**newest.parts["model"], **newest.parts.get("ema", {})})
    except RuntimeError as error:
        raise UserError(f"the weights of {run} do not fit this config: {' '.join(str(error).split())}") from None
    return newest.step
