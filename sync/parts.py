"""The parts of a run that are pulled apart from one another: light ones first, heavy ones by choice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache

from pipeline.errors import UserError, nearest

Facts = list[int]  # size in bytes, time of the last change in ns
Files = dict[str, Facts]  # by name within the run

METRICS = (
    "config.yaml",
    "history.jsonl",
    "lease.json",
    "heartbeat.json",
    "launch.json",
    "data.json",
    "evaluation.json",
    "metrics",
)
# In the order in which they are pulled. ``ema``: of the newest checkpoint all but the optimizer, enough to make audio with.
PARTS: dict[str, tuple[str, ...]] = {
    "metrics": METRICS,
    "samples": ("samples", "figures"),
    "logs": ("logs", "profile"),
    "code": ("code", "code_*"),
    "choices": ("choices", "pairs"),
    "ema": ("checkpoints",),
    "checkpoints": ("checkpoints",),
}
USUAL = ("metrics", "samples", "logs")
COMPRESSED = {"metrics", "logs", "code"}  # text; audio, pictures and weights hardly shrink
GROWING = re.compile(r"history\.jsonl|metrics/[^/]+\.jsonl|logs/.*", re.DOTALL)  # files that are only appended to
CHECKPOINT = re.compile(r"checkpoints/(step_\d{9})/(.+)", re.DOTALL)
MANIFEST = "MANIFEST.json"


def parse_parts(text: str | None) -> tuple[str, ...]:
    """What ``--only`` names, in the order of pulling; UserError lists the parts where one is not known."""
    if text is None:
        return USUAL
    asked = [word.strip() for word in text.split(",")]
    for word in asked:
        if word not in PARTS:
            raise UserError(f"--only {text}: no part '{word}'.{nearest(word, PARTS)} There are: {', '.join(PARTS)}.")
    return tuple(part for part in PARTS if part in asked)


def tops_of(parts: tuple[str, ...]) -> list[str]:
    """Patterns for the first part of the names that belong to ``parts``."""
    return list(dict.fromkeys(top for part in parts for top in PARTS[part]))


def below(name: str, tops: Iterable[str]) -> bool:
    """Whether the first part of a name matches one of the patterns."""
    return any(fnmatchcase(name.partition("/")[0], top) for top in tops)


@cache
def _parts_of_top(top: str) -> frozenset[str]:
    return frozenset(part for part, patterns in PARTS.items() if below(top, patterns))


def belongs(name: str, part: str) -> bool:
    """Whether a file belongs to a part by its place; for ``ema`` that is any file of a checkpoint but an optimizer's."""
    if part not in _parts_of_top(name.partition("/")[0]):
        return False
    if part not in ("ema", "checkpoints"):
        return True
    checkpoint = CHECKPOINT.fullmatch(name)
    return checkpoint is not None and (part == "checkpoints" or not checkpoint[2].startswith("optimizer."))


def choose(files: Files, part: str) -> Files:
    """Of a run's files those of one part."""
    chosen = {name: facts for name, facts in files.items() if belongs(name, part)}
    if part == "ema":
        newest = max((match[1] for name in chosen if (match := CHECKPOINT.fullmatch(name))), default="")
        chosen = {name: facts for name, facts in chosen.items() if name.startswith(f"checkpoints/{newest}/")}
    return chosen
