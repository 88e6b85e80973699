"""Checkpoints that are whole or not there: written aside, fsynced, with a manifest of hashes, then renamed.

    checkpoints/step_000010000/
      model.safetensors  ema.safetensors  optimizer.main.safetensors ...   one file a part: its tensors
      shard-00001-of-00004.safetensors ...   instead, where the ranks wrote it together (``pipeline.shared_checkpoint``)
      state.json          everything that is not a tensor, and where in the data the run stands
      MANIFEST.json       size and xxh3_128 of every file above; written last

A tensor is found by its name, in whichever file it lies, so both kinds are read alike. Loading verifies every byte. A bad
checkpoint is set aside under a name that says so and the one before it is used, loudly.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.config import Keep
from pipeline.errors import UserError
from pipeline.files import fsync_folder, hash_file, read_json
from pipeline.train_module import TrainModule

FOLDER = re.compile(r"step_(\d{9})")
TEMPORARY = ".writing_"
MANIFEST = "MANIFEST.json"
TENSOR = "__tensor__"
OPTIMIZER = "optimizer."  # with what the names of optimizers' parts, and of their files, begin

Entry = dict[str, Any]  # size and xxh3_128 of a file
Leaf = Tensor | Callable[[], Tensor]


class BadCheckpoint(Exception):
    """A checkpoint that is not what was written; names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """``parts``: nested state dicts by name (model, ema, optimizer.main...); ``state``: JSON facts, of them ``step``.

    In a part that is to be saved a function may stand for a tensor: it is called when its turn comes, so that what is spread over
    ranks is gathered one tensor at a time.
    """

    step: int
    parts: Mapping[str, Any]
    state: dict[str, Any]


class StoredParts(Mapping[str, Any]):
    """The parts of a checkpoint folder; a part's tensors are read when it is asked for, onto the CPU, into memory of their own.

    Its files are open until ``close``: a shared file system does not let go of a folder while one in it is.

    Raises BadCheckpoint where a tensor that ``state.json`` names is in no file.
    """

    def __init__(self, path: Path, skeletons: dict[str, Any]) -> None:
        self._path, self._skeletons = path, skeletons
        self._open = [safe_open(file, framework="pt") for file in sorted(path.glob("*.safetensors"))]
        self._files = {name: file for file in self._open for name in file.keys()}  # noqa: SIM118  it is no mapping
        named: dict[str, Any] = {}
        put_tensors(skeletons, lambda name: named.setdefault(name))
        if missing := sorted(named.keys() - self._files.keys()):
            raise BadCheckpoint(f"{path}: no file holds {', '.join(missing[:3])}")

    def __getitem__(self, part: str) -> Any:
        return put_tensors(self._skeletons[part], self.tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._skeletons)

    def __len__(self) -> int:
        return len(self._skeletons)

    def tensor(self, name: str) -> Tensor:
        """One tensor by its full name, such as ``optimizer.main.state.0.exp_avg``; KeyError where there is none."""
        return self._files[name].get_tensor(name).clone()  # it was a view of the file

    def close(self) -> None:
        """Let go of the files; what was read stays."""
        for file in self._open:
            file.__exit__(None, None, None)

    def names(self) -> set[str]:
        """Full names of all tensors."""
        return set(self._files)


@dataclass(frozen=True)
class StoredCheckpoint(Checkpoint):
    """A checkpoint that was loaded."""

    parts: StoredParts


def folder_name(step: int) -> str:
    return f"step_{step:09d}"


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` under ``folder``; when this returns it is complete and durable. One that is there already stays.

    Raises OSError where it could not be written; ``sweep`` removes what is left of it.
    """
    final = folder / folder_name(checkpoint.step)
    if final.exists():
        return final
    aside = aside_name(folder, checkpoint.step, os.getpid())
    aside.mkdir()
    entries, skeletons = {}, {}
    for name, part in checkpoint.parts.items():
        leaves: dict[str, Leaf] = {}
        skeletons[name] = take_leaves(part, leaves, name)
        file = f"{name}.safetensors"
        entries[file] = write_tensors(aside / file, {key: tensor_of(leaf) for key, leaf in leaves.items()})
    commit(aside, final, entries, {**checkpoint.state, "step": checkpoint.step, "parts": skeletons})
    return final


def aside_name(folder: Path, step: int, writer: int) -> Path:
    """Where the process ``writer`` writes before the folder has its name: nobody takes this for a checkpoint."""
    return folder / f"{TEMPORARY}{folder_name(step)}_{writer}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Entry:
    """Write one safetensors file, durable when this returns; its size and hash for the manifest. Raises OSError."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # its word for a disk that takes no more
        raise OSError(errno.EIO, str(error), str(path)) from error
    return seal(path)


def seal(path: Path) -> Entry:
    """Make a file that was just written durable; its size and hash."""
    entry = {"size": path.stat().st_size, "xxh3_128": hash_file(path)}
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return entry


def commit(aside: Path, final: Path, entries: dict[str, Entry], state: dict[str, Any]) -> None:
    """Add ``state.json`` and the manifest to the files that ``entries`` describe, and give the folder its name."""
    (aside / "state.json").write_text(json.dumps(state, indent=1))
    entries = {**entries, "state.json": seal(aside / "state.json")}
    (aside / MANIFEST).write_text(json.dumps({"format": 1, "files": dict(sorted(entries.items()))}, indent=1))
    seal(aside / MANIFEST)
    fsync_folder(aside)
    aside.rename(final)
    fsync_folder(final.parent)


def load(path: Path, *, weights_only: bool = False) -> StoredCheckpoint:
    """Open a checkpoint folder, every byte verified; BadCheckpoint names what is wrong.

    Args:
        weights_only: leave the optimizers out; their files may be missing then, as where only the weights were pulled.
    """
    try:
        verify(path, weights_only=weights_only)
        state = json.loads((path / "state.json").read_text())
        skeletons = state.pop("parts")
        if weights_only:
            skeletons = {name: part for name, part in skeletons.items() if not name.startswith(OPTIMIZER)}
        parts = StoredParts(path, skeletons)
        return StoredCheckpoint(state["step"], parts, state)
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise BadCheckpoint(f"{path}: {type(error).__name__}: {error}") from error


def verify(path: Path, *, weights_only: bool = False) -> None:
    """Check size and hash of every file against the manifest; BadCheckpoint names the first that differs."""
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise BadCheckpoint(f"{path / MANIFEST} is missing or damaged")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            if weights_only and name.startswith(OPTIMIZER):
                continue
            raise BadCheckpoint(f"{file} is missing")
        if file.stat().st_size != entry["size"]:
            raise BadCheckpoint(f"{file} has {file.stat().st_size} bytes, its manifest says {entry['size']}")
        if hash_file(file) != entry["xxh3_128"]:
            raise BadCheckpoint(f"{file} is not the bytes that were written (xxh3_128 differs)")


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint under ``folder``, ascending."""
    return sorted(int(m[1]) for p in folder.iterdir() if (m := FOLDER.fullmatch(p.name)))


def load_newest(
    folder: Path, *, set_aside: bool, weights_only: bool = False
) -> tuple[StoredCheckpoint | None, list[str]]:
    """The newest good checkpoint, and a sentence for each newer one that was bad.

    Args:
        set_aside: rename what is bad. Only for who holds the run's lease; a reader goes past it, and past one that is pruned
            while it reads.
        weights_only: as of ``load``.
    """
    rejected: dict[int, str] = {}
    while left := set(steps(folder)) - rejected.keys():
        path = folder / folder_name(max(left))
        try:
            return load(path, weights_only=weights_only), list(rejected.values())
        except BadCheckpoint as error:
            if set_aside:
                aside = _free_name(folder / f"bad_{path.name}")
                path.rename(aside)
                rejected[max(left)] = f"{error}; set aside as {aside.name}"
            elif path.is_dir():
                rejected[max(left)] = f"{error}; the one before it is used"
    return None, list(rejected.values())


def sweep(folder: Path) -> list[str]:
    """Remove what writers that were killed left half written; a sentence for each that will not go.

    Call only while holding the run's lease.
    """
    return _remove(sorted(p for p in folder.iterdir() if p.name.startswith(TEMPORARY)))


def prune(folder: Path, keep: Keep) -> list[str]:
    """Remove checkpoints that ``keep`` does not name; a sentence for each that will not go.

    A folder is renamed first, so that none is ever half there; ``sweep`` finds what is left of it.
    """
    present = steps(folder)
    kept = set(present[-keep.last :])
    if keep.every:
        kept |= {s for s in present if s % keep.every == 0}
    if keep.best:
        ranked = sorted(_validation_losses(folder, present).items(), key=lambda item: item[1])
        kept |= {step for step, _ in ranked[: keep.best]}
    stuck: list[str] = []
    for step in sorted(set(present) - kept):
        path = folder / folder_name(step)
        doomed = _free_name(folder / f"{TEMPORARY}{path.name}_pruned")
        try:
            path.rename(doomed)
            stuck += _remove([doomed])
        except OSError as error:
            stuck.append(f"{path} cannot be removed ({error.strerror})")
    return stuck


def _remove(folders: list[Path]) -> list[str]:
    """Remove folders; a sentence for each that will not go, as on NFS one with a file that some process has open."""
    stuck = []
    for path in folders:
        try:
            shutil.rmtree(path)
        except OSError as error:
            stuck.append(f"{path} cannot be removed ({error.strerror}); a later attempt tries again")
    return stuck


def _validation_losses(folder: Path, present: list[int]) -> dict[int, float]:
    """By step, of the checkpoints that were validated; one that is not a number is no measure of anything."""
    states = {step: read_json(folder / folder_name(step) / "state.json") or {} for step in present}
    losses = {step: state.get("validation_loss") for step, state in states.items()}
    return {step: loss for step, loss in losses.items() if loss is not None and not math.isnan(loss)}


def _free_name(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}_{i}") for i in range(1, 1000))]
    return next(p for p in candidates if not p.exists())


def take_leaves(tree: Any, leaves: dict[str, Leaf], path: str) -> Any:
    """A JSON skeleton of ``tree``; its tensors go to ``leaves`` under their path. Integer keys (optimizer states) are marked."""
    if isinstance(tree, Tensor) or callable(tree):
        leaves[path] = tree
        return {TENSOR: path}
    if isinstance(tree, Mapping):
        pairs = [
            [key, take_leaves(value, leaves, f"{path}.{key}" if path else str(key))] for key, value in tree.items()
        ]
        return {"__mapping__": pairs} if any(not isinstance(k, str) for k in tree) else dict(pairs)
    if isinstance(tree, list | tuple):
        return [take_leaves(value, leaves, f"{path}.{i}") for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(tree).__name__} (at '{path}')")


def tensor_of(leaf: Leaf) -> Tensor:
    """The tensor that ``leaf`` is or gives, as it is written."""
    tensor = leaf if isinstance(leaf, Tensor) else leaf()
    return tensor.detach().cpu().contiguous()


def put_tensors(tree: Any, read: Callable[[str], Any]) -> Any:
    """The tree that ``take_leaves`` made a skeleton of; ``read`` gives the tensor of a path."""
    if isinstance(tree, dict):
        if TENSOR in tree:
            return read(tree[TENSOR])
        if "__mapping__" in tree:
            return {key: put_tensors(value, read) for key, value in tree["__mapping__"]}
        return {key: put_tensors(value, read) for key, value in tree.items()}
    if isinstance(tree, list):
        return [put_tensors(value, read) for value in tree]
    return tree


def trained_weights(run: Path, *, averaged: bool = True) -> tuple[dict[str, Tensor], int]:
    """Weights of a run's newest good checkpoint, whole on the CPU, and its step; where the run averages them, the averages.

    Args:
        averaged: False takes the weights that were being trained.

    Raises UserError where the run has no checkpoint.
    """
    folder = run / "checkpoints"
    newest, rejected = load_newest(folder, set_aside=False, weights_only=True) if folder.is_dir() else (None, [])
    for sentence in rejected:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
    if newest is None:
        raise UserError(f"{run} has no checkpoint yet; launch it again and let it save one.")
    averages = newest.parts.get("ema", {}) if averaged else {}
    weights = {**newest.parts["model"], **averages}
    newest.parts.close()
    return weights, newest.step


def load_weights(module: nn.Module, run: Path) -> int:
    """Give ``module`` the weights of a run's newest good checkpoint (averaged ones where it has them); returns the step.

    Raises UserError where that run has no checkpoint or is of another architecture.
    """
    weights, step = trained_weights(run)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights of {run} do not fit this config: {' '.join(str(error).split())}") from None
    return step


def start(module: TrainModule, runs: Mapping[str, Path]) -> dict[str, int]:
    """Begin ``module`` with the weights of other runs, see ``TrainModule.start_from``; the step of each.

    Raises UserError where one has no checkpoint or does not fit.
    """
    found = {what: trained_weights(run) for what, run in runs.items()}
    try:
        module.start_from({what: weights for what, (weights, _) in found.items()})
    except (RuntimeError, KeyError) as error:
        names = ", ".join(str(run) for run in runs.values())
        raise UserError(f"the weights of {names} do not fit this config: {' '.join(str(error).split())}") from None
    return {what: step for what, (_, step) in found.items()}
