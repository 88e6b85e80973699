"""Which of two outputs people chose, and the comparisons that a reward learns from: sealed shards, made of what was chosen until now.

    <run>/pairs/                        what is compared, see ``jobs.pairs``
    <run>/choices/<rater>.jsonl         what was chosen, see ``pipeline.choices``
    <run>/comparisons/<8 hex>/          the pairs that somebody has chosen in, and:

        choice.npy   float32 ()         share of its raters that preferred a; a tie counts half
        votes.npy    int64 ()           raters that did not skip it

A rater's last word on a pair counts. The hex is of all the choices, so a reward that was trained before others were made keeps its data.
Never imports torch: a launch seals comparisons on a login node.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.engine import prepare
from data_prep.finish import finish
from data_prep.plan import read_plan
from data_prep.shard_stage import ShardStage
from data_prep.stage import Input, Samples
from pipeline.choices import read_choices
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST, Manifest, read_manifest
from pipeline.runs import RunFolder

RECIPE = "comparisons"
SHARE = {"a": 1.0, "b": 0.0, "tie": 0.5}  # of a vote that is the first side's; "skip" is no vote
Votes = Mapping[str, Sequence[float]]


def chosen(run: RunFolder) -> dict[str, dict[str, str]]:
    """By pair, what each rater chose last; what is no choice is said and left out."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    counting, trouble = read_choices(run.path)
    for sentence in trouble:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
    for choice in counting:
        found[choice.pair][choice.rater] = choice.choice
    return dict(found)


def sealed(run: RunFolder) -> Manifest:
    """The comparisons of ``run`` as of now, sealed where they are not yet; UserError where there is nothing to seal."""
    pairs = run.pairs
    if not (pairs / MANIFEST).is_file():
        raise UserError(
            f"{run.name} has no pairs to compare; make them: python jobs/generate.py {run.name} --pairs 1000"
        )
    votes = {
        pair: shares
        for pair, by_rater in sorted(chosen(run).items())
        if (shares := [SHARE[choice] for _, choice in sorted(by_rater.items()) if choice in SHARE])
    }
    if not votes:
        raise UserError(
            f"nobody has compared the pairs of {run.name}; rate them: python monitoring/compare.py {run.name}"
        )
    stage = ComparisonStage(RECIPE, 1, run.name, json.dumps(votes, sort_keys=True), read_manifest(pairs))
    folder = run.comparisons / stage.digest[:8]
    if not (folder / MANIFEST).is_file():
        plan, _ = prepare(stage, pairs, folder, workers=0, max_failures=0.0)
        finish(stage, plan, folder)
    return read_manifest(folder)


def newest(run: RunFolder) -> Manifest:
    """The comparisons that were sealed last, for who must not write; UserError where there are none."""
    found = sorted(run.comparisons.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"no comparisons of {run.name} are sealed yet; a launch does it, when its pairs are rated.")
    return read_manifest(found[-1].parent)


@dataclass(frozen=True)
class ComparisonStage(ShardStage):
    """``votes``: JSON, by pair the shares of each vote that are the first side's."""

    run: str
    votes: str
    pairs: Manifest

    @property
    def dataset(self) -> str:
        return self.pairs.dataset

    @property
    def code(self) -> tuple[str, ...]:
        return ("jobs.choices:ComparisonStage", "data_prep.shard_stage", "data_prep.shards:ShardWriter")

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.pairs.identity}{self.votes}".encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        return {"of": self.run, "choices": self.digest}

    def licence(self, source: Path) -> str:
        plan = read_plan(source)
        return plan.licence if plan else f"As that of {source}."

    def load(self, item: Input, read: Callable[[str], bytes]) -> Samples:
        votes: Votes = json.loads(self.votes)
        samples: Samples = []
        for key, fields in self.samples_of(item, read):
            if key in votes:
                del fields["audio"]
                mean, count = np.float32(np.mean(votes[key])), np.int64(len(votes[key]))
                samples.append((key, fields | {"choice": np.asarray(mean), "votes": np.asarray(count)}))
        return samples

    def assemble(self, loaded: Sequence[Samples]) -> tuple[Samples, dict[str, Any]]:
        samples = [sample for each in loaded for sample in each]
        return samples, {"votes": int(sum(int(np.asarray(fields["votes"])) for _, fields in samples))}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        pairs = {split: self.pairs.samples(split) for split in samples}
        return {**self.pairs.info, "samples": samples, "pairs": pairs, "of": self.run}

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        votes = sum(summary["votes"] for each in summaries.values() for summary in each)
        return f"{votes} choices between pairs of outputs of {self.run}; fields stand at the head of `jobs/choices.py`."
