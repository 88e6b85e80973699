"""Where pretrained weights lie, and proof that they are what was fetched. No torch: preparation plans by these hashes.

    <weights folder>/<name>/manifest.json     written by data_prep/fetch_weights.py, last
    <weights folder>/<name>/<files as the manifest names them>

Nothing is ever downloaded from here: a compute node may have no way out.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import hash_file, write_json

MANIFEST = "manifest.json"
ENVIRONMENT = "SLURMPHONY_WEIGHTS"


@dataclass(frozen=True)
class WeightFile:
    """``path`` relative to the manifest's folder; ``size`` in bytes.

    ``sha256`` is the one that publishers name, ``xxh3_128`` the one that is checked at every load. ``said_by``: who named the first
    when the file came; where nobody did, it is the first one seen.
    """

    path: str
    url: str
    size: int
    sha256: str
    xxh3_128: str
    said_by: str


@dataclass(frozen=True)
class Weights:
    """``licence``: one line for dataset cards."""

    folder: Path
    licence: str
    files: tuple[WeightFile, ...]

    @property
    def identity(self) -> str:
        """sha256 over names and contents: equal exactly where the weights are equal, wherever they came from."""
        facts = sorted((file.path, file.sha256) for file in self.files)
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()

    def path(self, name: str) -> Path:
        return self.folder / name


def weights_root(given: Path | None = None) -> Path | None:
    """``given``, else $SLURMPHONY_WEIGHTS, else None."""
    if given is not None:
        return given
    return Path(named) if (named := os.environ.get(ENVIRONMENT)) else None


def fetch_command(name: str, root: Path | None = None) -> str:
    return f"python data_prep/fetch_weights.py {name} --out {root or 'DIR'}"


def find_weights(name: str, root: Path | None = None) -> Weights:
    """What lies in the weights folder under ``name``, unchecked. UserError where there is none, with what to type."""
    root = weights_root(root)
    if root is None:
        raise UserError(
            f"{name} needs its weights, and no weights folder is named: on a machine with internet type "
            f"{fetch_command(name)}, then set {ENVIRONMENT}=DIR."
        )
    path = root / name / MANIFEST
    try:
        tree = json.loads(path.read_bytes())
        files = tuple(WeightFile(**file) for file in tree["files"])
        return Weights(root / name, tree["licence"], files)
    except OSError:
        raise UserError(
            f"{name} needs its weights, and {root} ({ENVIRONMENT}) does not hold them: on a machine with internet type "
            f"{fetch_command(name, root)}."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); type {fetch_command(name, root)} again: what is intact stays."
        ) from None


def checked_weights(name: str, root: Path | None = None) -> Weights:
    """``find_weights``, and every byte of every file as it was fetched; else UserError."""
    weights = find_weights(name, root)
    wrong = [sentence for file in weights.files if (sentence := difference(weights.folder, file))]
    if wrong:
        raise UserError(
            f"{'; '.join(wrong)}; type {fetch_command(name, weights.folder.parent)}: it mends what is wrong."
        )
    return weights


def difference(folder: Path, file: WeightFile) -> str:
    """What is wrong with one file on disk, or the empty string."""
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"{path} is {size} bytes long, not {file.size}"
        return "" if hash_file(path) == file.xxh3_128 else f"{path} does not hold the bytes that were fetched"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def write_manifest(name: str, root: Path, licence: str, files: list[WeightFile]) -> None:
    """Declare ``root/name`` complete."""
    tree: dict[str, Any] = {"name": name, "licence": licence, "files": [asdict(file) for file in files]}
    write_json(root / name / MANIFEST, tree)
