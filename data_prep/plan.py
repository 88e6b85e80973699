"""The plan: a frozen, sorted list of what goes into which shard, with every input's content hash.

A shard's key is the hash of all that its bytes depend on: its inputs' contents, the recipe's settings, the code of the stage and
the codec's weights. A shard whose committed key is the planned one is done, whoever made it and whenever.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import xxhash

from data_prep.stage import Input, InputFile, Stage
from pipeline.errors import UserError
from pipeline.manifest import FORMAT, SPLITS

PLAN_NAME = "plan.json"


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
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "shards"}
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


def make_plan(stage: Stage, hashed: Iterable[Input], source: Path) -> Plan:
    """Deal hashed inputs to shards; the same plan from the same inputs, whoever makes it. UserError for a leak between splits."""
    inputs = sorted(hashed, key=lambda item: (item.split, item.name))
    refuse_leaks(inputs, stage.leak_signatures)
    code = code_version(stage.code)
    shards = []
    for split in SPLITS:
        members = [item for item in inputs if item.split == split]
        for number, items in sorted(_deal(stage, members).items()):
            shards.append(PlannedShard(f"{split}-{number:06d}", split, shard_key(stage, code, items), items))
    return Plan(stage.dataset, stage.recipe, stage.codec, stage.settings(), code, stage.licence(source), tuple(shards))


def _deal(stage: Stage, items: list[Input]) -> dict[int, tuple[Input, ...]]:
    count = max(1, len(items) // stage.inputs_per_shard)
    shards: dict[int, tuple[Input, ...]] = {}
    for item in items:
        number = stage.shard_number(item, count)
        shards[number] = (*shards.get(number, ()), item)
    return shards


def shard_key(stage: Stage, code: str, items: Iterable[Input]) -> str:
    """sha256 over the canonical JSON of everything that a shard's bytes depend on, first 32 hex digits."""
    facts = {
        "format": FORMAT,
        "settings": stage.settings(),
        "code": code,
        "codec": [stage.codec, stage.codec_hash],
        "inputs": [(item.name, [(f.path, f.size, f.hash) for f in item.files], *item.facts) for item in items],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def code_version(entries: Iterable[str]) -> str:
    """sha256 over the code that decides a stage's bytes, without comments, docstrings and layout, first 16 hex digits.

    An entry is a module, or "module:name": that function or class with all that it uses of its module. So a new feature in a
    shared module, or a reworded docstring, rebuilds nothing.
    """
    digest = hashlib.sha256()
    for entry in entries:
        module, _, name = entry.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, module
        tree = ast.parse(Path(spec.origin).read_text())
        for node in _reached(tree, name) if name else tree.body:
            digest.update(f"{entry}\n{ast.unparse(_without_docstrings(node))}\n".encode())
    return digest.hexdigest()[:16]


def _reached(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The module-level statements that define ``name`` and whatever it mentions, in their order."""
    statements: dict[str, ast.stmt] = {}
    for node in tree.body:
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound = {node.name}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound = {alias.asname or alias.name for alias in node.names}
        statements |= dict.fromkeys(bound, node)
    assert name in statements, name
    open_names, seen = [name], {name}
    while open_names:
        for part in ast.walk(statements[open_names.pop()]):
            if isinstance(part, ast.Name) and part.id in statements and part.id not in seen:
                seen.add(part.id)
                open_names.append(part.id)
    kept = {id(statements[n]) for n in seen}
    return [node for node in tree.body if id(node) in kept]


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    for part in ast.walk(statement):
        body = getattr(part, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return statement


def refuse_leaks(inputs: Iterable[Input], signatures: Callable[[Input], tuple[str, ...]]) -> None:
    """UserError where one group, or one recording under two names, lies in two splits."""
    seen: dict[str, Input] = {}
    for item in inputs:
        marks = [(f"group {item.group}", f"{item.name} lies")]
        lies_twice = f"one recording lies under the names {{}} and {item.name}"
        marks += [(f"content {sign}", lies_twice) for sign in signatures(item)]
        for mark, lies in marks:
            first = seen.setdefault(mark, item)
            if first.split != item.split:
                raise UserError(
                    f"{lies.format(first.name)} in two splits, {first.split} and {item.split}: a model would be tested on what it "
                    "was trained on. Remove one; splits come from the folders, as the dataset's authors made them."
                )


def _compact(shard: PlannedShard) -> dict[str, Any]:
    inputs = [[i.name, i.group, [[f.path, f.size, f.hash] for f in i.files], *i.facts] for i in shard.inputs]
    return {"name": shard.name, "split": shard.split, "key": shard.key, "inputs": inputs}


def _expand(tree: dict[str, Any]) -> PlannedShard:
    inputs = tuple(
        Input(name, tree["split"], group, tuple(InputFile(*file) for file in files), tuple(facts))
        for name, group, files, *facts in tree["inputs"]
    )
    return PlannedShard(tree["name"], tree["split"], tree["key"], inputs)
