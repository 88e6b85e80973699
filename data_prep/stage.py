"""What a dataset tells the engine: which inputs there are, how one is read, and what samples a shard of them gives.

The engine knows no music. A stage is a frozen dataclass (its fields are its settings, and part of every shard's cache key) that is
pickled to the workers, so it lives in an importable module, never in ``__main__``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

Fields = dict[str, "np.ndarray | dict[str, Any]"]  # an array becomes <field>.npy, a dict <field>.json
Samples = list[tuple[str, Fields]]  # (key, fields); keys unique in the dataset and without a dot


class BadInput(Exception):
    """This input cannot be used; the message says why. It is quarantined and preparation goes on."""


@dataclass(frozen=True)
class InputFile:
    """``path`` relative to the source folder, with slashes; ``hash`` xxh3_128 of its bytes, empty where it could not be read."""

    path: str
    size: int = -1
    hash: str = ""


@dataclass(frozen=True)
class Input:
    """What stays together and passes or fails as one: a track with its files. ``group`` may lie in one split only."""

    name: str
    split: str
    group: str
    files: tuple[InputFile, ...]


@dataclass(frozen=True)
class Stage(ABC):
    """Base of every recipe. ``inputs_per_shard`` is a mean: an input's shard follows from its name alone."""

    recipe: str
    inputs_per_shard: int

    @property
    @abstractmethod
    def dataset(self) -> str:
        """Its name; a class attribute in most stages."""

    @property
    @abstractmethod
    def code(self) -> tuple[str, ...]:
        """What decides the bytes, "module" or "module:name" (see ``plan.code_version``); a class attribute in most stages."""

    @property
    def codec(self) -> str | None:
        return None

    @property
    def codec_hash(self) -> str | None:
        """Of the codec's weights."""
        return None

    def settings(self) -> dict[str, Any]:
        """What of the stage the bytes depend on: by default all its fields."""
        return dataclasses.asdict(self)

    def shard_number(self, item: Input, shards: int) -> int:
        """Which of a split's ``shards`` takes ``item``: by its name's hash, so that one more input does not push all others along."""
        return xxhash.xxh3_64_intdigest(item.name.encode()) % shards

    @abstractmethod
    def scan(self, source: Path) -> list[Input]:
        """All inputs, files unhashed. Raises UserError where ``source`` is missing, empty, or another dataset's layout."""

    @abstractmethod
    def licence(self, source: Path) -> str:
        """One line for the dataset card."""

    @abstractmethod
    def load(self, item: Input, read: Callable[[str], bytes]) -> Any:
        """One input, decoded and cut. ``read(path)`` gives a file's bytes, checked against the plan.

        Raises BadInput. Depends on nothing but the input.
        """

    @abstractmethod
    def assemble(self, loaded: Sequence[Any]) -> tuple[Samples, dict[str, Any]]:
        """A shard's samples from what ``load`` gave for its good inputs, and a summary (JSON) for ``info`` and ``card``."""

    @abstractmethod
    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        """The manifest's ``info`` from the shards' summaries and the number of samples, by split."""

    @abstractmethod
    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        """The recipe's own part of the dataset card, Markdown."""

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        """What two inputs that are secretly the same have in common; empty where there is nothing to compare."""
        return ()

    def pictures(self, summaries: dict[str, list[dict[str, Any]]]) -> dict[str, bytes]:
        """PNG files by name that lie beside the card; ``card`` refers to them."""
        return {}
