"""The plan: a frozen, sorted list of what goes into which shard, with every input's content hash.

A shard's key is the hash of all that its bytes depend on: its inputs' contents, the recipe's settings, the code of the stage and
the codec's weights. A shard whose committed key is the planned one is done, whoever made it and whenever.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_prep.shards import file_hash
from data_prep.stage import Input, InputFile, Stage
from pipeline.errors import UserError
from pipeline.shards import FORMAT, SPLITS

PLAN_NAME = "plan.json"
HASH_CACHE = "hashes.json"  # in the work folder: a restart does not read every input again


@dataclass(frozen=True)
class PlannedShard:
    name: str
    split: str
    key: str
    inputs: tuple[Input, ...]


@dataclass(frozen=True)
class Plan:
    dataset: str
    recipe: str
    codec: str | None
    settings: dict[str, Any]
    code: str  # version of the stage's code
    licence: str
    shards: tuple[PlannedShard, ...]

    @property
    def inputs(self) -> int:
        return sum(len(shard.inputs) for shard in self.shards)

    def to_json(self) -> bytes:
        """Canonical bytes, one line a shard."""
        head = {k: v for k, v in asdict(self).items() if k != "shards"}
        lines = [json.dumps(_compact(shard), separators=(",", ":")) for shard in self.shards]
        text = (
            json.dumps({"format": FORMAT, **head}, sort_keys=True)[:-1]
            + ', "shards": [\n'
            + ",\n".join(lines)
            + "\n]}\n"
        )
        return text.encode()

    @property
    def identity(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.to_json())


def read_plan(folder: Path) -> Plan | None:
    """The plan that lies in a prepared (or half-prepared) dataset; None where there is none that this version reads."""
    try:
        tree = json.loads((folder / PLAN_NAME).read_bytes())
        if tree.pop("format") != FORMAT:
            return None
        return Plan(**{**tree, "shards": tuple(_expand(shard) for shard in tree["shards"])})
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None


def make_plan(
    stage: Stage, source: Path, cache: Path | None, workers: int, progress: Callable[[int, int], None]
) -> Plan:
    """Scan ``source``, hash every input and deal the inputs to shards. Raises UserError for another layout and for a leak."""
    inputs = sorted(
        _hashed(stage.scan(source), source, cache, workers, progress), key=lambda item: (item.split, item.name)
    )
    refuse_leaks(inputs, stage.leak_signature)
    code = code_version(stage.code)
    shards = []
    for split in SPLITS:
        members = [item for item in inputs if item.split == split]
        for number, items in sorted(_deal(members, stage.inputs_per_shard).items()):
            shards.append(PlannedShard(f"{split}-{number:06d}", split, shard_key(stage, code, items), items))
    return Plan(stage.dataset, stage.recipe, stage.codec, stage.settings(), code, stage.licence(source), tuple(shards))


def _deal(items: list[Input], per_shard: int) -> dict[int, tuple[Input, ...]]:
    """An input's shard is its name's hash modulo the number of shards: one more input does not push all others along."""
    count = max(1, len(items) // per_shard)
    shards: dict[int, tuple[Input, ...]] = {}
    for item in items:
        number = xxhash.xxh3_64_intdigest(item.name.encode()) % count
        shards[number] = (*shards.get(number, ()), item)
    return shards


def shard_key(stage: Stage, code: str, items: Iterable[Input]) -> str:
    """sha256 over the canonical JSON of everything that a shard's bytes depend on, first 32 hex digits."""
    facts = {
        "format": FORMAT,
        "settings": stage.settings(),
        "code": code,
        "codec": [stage.codec, stage.codec_hash],
        "inputs": [(item.name, [(f.path, f.size, f.hash) for f in item.files]) for item in items],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def code_version(modules: Iterable[str]) -> str:
    """sha256 over the modules' code without comments, docstrings and layout, first 16 hex digits."""
    digest = hashlib.sha256()
    for name in modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        tree = ast.parse(Path(spec.origin).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[0] = ast.Pass()  # a docstring
        digest.update(f"{name}\n{ast.unparse(tree)}\n".encode())
    return digest.hexdigest()[:16]


def refuse_leaks(inputs: Iterable[Input], signature: Callable[[Input], str | None]) -> None:
    """UserError where one group, or one recording under two names, lies in two splits."""
    seen: dict[str, Input] = {}
    for item in inputs:
        sign = signature(item)
        for mark, what in ((f"group {item.group}", "lies"), (f"content {sign}", "lies under two names")):
            if what == "lies under two names" and sign is None:
                continue
            first = seen.setdefault(mark, item)
            if first.split != item.split:
                names = item.name if first.name == item.name else f"{first.name} = {item.name}"
                raise UserError(
                    f"{names} {what} in two splits, {first.split} and {item.split}: a model would be tested on what it was "
                    "trained on. Remove one of the two; splits come from the folders as the dataset's authors made them."
                )


def _hashed(
    inputs: list[Input], source: Path, cache: Path | None, workers: int, progress: Callable[[int, int], None]
) -> list[Input]:
    """``inputs`` with every file's size and content hash; files whose stat the cache knows are not read again."""
    known: dict[str, list[Any]] = {}
    if cache is not None:
        try:
            known = json.loads(cache.read_bytes())
        except (OSError, ValueError):
            known = {}
    files = [file.path for item in inputs for file in item.files]

    def look(path: str) -> tuple[InputFile, list[Any]]:
        try:
            stat = (source / path).stat()
            facts = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            entry = known.get(path)
            digest = entry[-1] if entry is not None and entry[:-1] == facts else file_hash(source / path)
            return InputFile(path, stat.st_size, digest), [*facts, digest]
        except OSError:
            return InputFile(path), []

    done: dict[str, InputFile] = {}
    fresh: dict[str, list[Any]] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:  # reading and hashing release the interpreter lock
        for path, (file, entry) in zip(files, pool.map(look, files), strict=True):
            done[path], fresh[path] = file, entry
            progress(len(done), len(files))
    if cache is not None:
        aside = cache.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps({path: entry for path, entry in fresh.items() if entry}))
        aside.replace(cache)
    return [Input(i.name, i.split, i.group, tuple(done[f.path] for f in i.files)) for i in inputs]


def _compact(shard: PlannedShard) -> dict[str, Any]:
    inputs = [[i.name, i.group, [[f.path, f.size, f.hash] for f in i.files]] for i in shard.inputs]
    return {"name": shard.name, "split": shard.split, "key": shard.key, "inputs": inputs}


def _expand(tree: dict[str, Any]) -> PlannedShard:
    inputs = tuple(
        Input(name, tree["split"], group, tuple(InputFile(*file) for file in files))
        for name, group, files in tree["inputs"]
    )
    return PlannedShard(tree["name"], tree["split"], tree["key"], inputs)
