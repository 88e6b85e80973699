"""Pairs of a run's outputs, drawn for comparison, as sealed shards in its own folder: ``<run>/pairs/``.

One shard for each of the shards that the run was trained on, and of the same split, so that who is judged on held-out pairs has not heard
their songs. The same command goes on where it was killed, and does nothing where all is there; fields stand at the head of
``models/cqtml/pairs.py``. A configuration with a ``pairs:`` section is such a link of a chain.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.engine import prepare
from data_prep.finish import finish
from data_prep.plan import read_plan
from data_prep.shard_stage import ShardStage
from data_prep.stage import Input, Samples
from jobs.choices import chosen
from models.cqtml.config import PairsConfig
from pipeline.choices import SCRIPTED_JUDGE as JUDGE
from pipeline.choices import append_choice
from pipeline.errors import UserError
from pipeline.files import hash_file
from pipeline.manifest import Manifest, read_manifest
from pipeline.rng import key
from pipeline.runs import RunFolder
from pipeline.samples import SplitReader

SEGMENT_FACTS = (
    "sample_rate",
    "segment",
    "seconds",
    "cqt",
    "frames",
    "mean",
    "std",
)  # of the songs, that a reward needs


def make_pairs(run: RunFolder, section: PairsConfig, workers: int, data_root: str | None = None) -> Manifest:
    """All pairs of ``section``, sealed; with the scripted judge its choices, too.

    Raises UserError where the run is untrained, its data is not here, or pairs that somebody rated would be drawn anew.
    """
    stage, source = pairs_stage(run, section, data_root)
    folder = run.pairs
    _spare_what_was_rated(run, stage, folder)
    plan, _ = prepare(stage, source, folder, workers, max_failures=0.0)
    finish(stage, plan, folder)
    manifest = read_manifest(folder)
    if section.raters == JUDGE:
        judge(run, manifest)
    return manifest


def judge(run: RunFolder, manifest: Manifest) -> None:
    """Let the scripted judge choose in every pair it has not chosen in yet."""
    from models.cqtml.pairs import verdict

    done = {pair for pair, raters in chosen(run).items() if JUDGE in raters}
    for split in ("train", "valid", "test"):
        reader = SplitReader(manifest, split)
        for number in range(manifest.samples(split)):
            began, sample = time.time(), reader.sample(number)
            if sample["__key__"] not in done:
                choice = verdict(sample)
                append_choice(run.path, JUDGE, sample["__key__"], choice, time.time() - began, durable=False)
        reader.close()


def pairs_stage(run: RunFolder, section: PairsConfig, data_root: str | None = None) -> tuple[PairsStage, Path]:
    """The stage, and the shards that it draws from."""
    from jobs.trained import load_trained  # late: it brings torch

    trained = load_trained(run, data_root)
    source = trained.require_data()
    if not hasattr(trained.module, "generator"):
        raise UserError(f"{run.name} is not a generator; pairs are drawn by a run of cqtml or cqtml_policy.")
    weights = weights_at(run, trained.step)
    manifest = read_manifest(source)
    facts = tuple((name, manifest.info[name]) for name in SEGMENT_FACTS if name in manifest.info)
    share = tuple(sorted(_shares(manifest, section.count).items()))
    return PairsStage("pairs", 1, run.path, data_root, section, weights, manifest.dataset, facts, share), source


def weights_at(run: RunFolder, step: int) -> str:
    """Hash of what names every file of the checkpoint at ``step`` by its hash."""
    return hash_file(run.checkpoints / f"step_{step:09d}" / "MANIFEST.json")


def newest_weights(run: RunFolder) -> str | None:
    """``weights_at`` the newest step; None where there is none."""
    steps = run.steps()
    return weights_at(run, steps[-1]) if steps else None


@dataclass(frozen=True)
class PairsStage(ShardStage):
    """``weights``: hash of the checkpoint that draws. ``facts``: of the songs. ``shares``: how many pairs come of each shard."""

    run: Path
    data_root: str | None
    section: PairsConfig
    weights: str
    songs: str
    facts: tuple[tuple[str, Any], ...]
    shares: tuple[tuple[str, int], ...]

    @property
    def dataset(self) -> str:
        return self.songs

    @property
    def code(self) -> tuple[str, ...]:
        own = ("jobs.pairs:PairsStage", "data_prep.shard_stage", "data_prep.shards:ShardWriter")
        return (*own, "models.cqtml.pairs:pair", "models.cqtml.api", "models.cqtml.brightness")

    def settings(self) -> dict[str, Any]:
        drawn = self.section.model_dump(include={"count", "temperatures", "seed"})
        return {"run": RunFolder(self.run).name, "weights": self.weights, **drawn}

    def scan(self, source: Path) -> list[Input]:
        shares = dict(self.shares)
        return [replace(item, facts=(str(shares[item.name]),)) for item in super().scan(source)]

    def licence(self, source: Path) -> str:
        plan = read_plan(source)
        return plan.licence if plan else f"As that of {source}."

    def load(self, item: Input, read: Callable[[str], bytes]) -> Samples:
        from models.cqtml.pairs import pair

        module, wanted = _module(self.run, self.data_root, self.weights), int(item.facts[0])
        songs = sorted(self.samples_of(item, read), key=lambda each: key(self.section.seed, f"cqtml/order/{each[0]}"))
        samples: Samples = []
        for number in range(wanted):
            name, fields = songs[number % len(songs)]
            draw = number // len(songs)
            made = pair(module, fields, name, draw, self.section, self.weights)
            samples.append((f"{name}-{draw}-{self.weights[:8]}", made))
        return samples

    def assemble(self, loaded: Sequence[Samples]) -> tuple[Samples, dict[str, Any]]:
        samples = [sample for each in loaded for sample in each]
        return samples, {"pairs": len(samples)}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        drawn = {name: value for name, value in _as_planned(self.settings()).items() if name != "run"}
        return {**dict(self.facts), "samples": samples, "of": RunFolder(self.run).name, **drawn}

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        return (
            f"Pairs of outputs of {RunFolder(self.run).name} for one input each, at temperatures "
            f"{', '.join(map(str, self.section.temperatures))}; fields stand at the head of `models/cqtml/pairs.py`."
        )


def _shares(manifest: Manifest, count: int) -> dict[str, int]:
    """``count`` pairs dealt to shards by their samples: rounded so that the sum is exact."""
    total, seen, dealt, shares = sum(s.samples for s in manifest.shards), 0, 0, {}
    for shard in manifest.shards:
        seen += shard.samples
        shares[shard.name] = round(count * seen / total) - dealt
        dealt += shares[shard.name]
    return shares


def _spare_what_was_rated(run: RunFolder, stage: PairsStage, folder: Path) -> None:
    plan = read_plan(folder)
    people = [path.stem for path in sorted(run.choices.glob("*.jsonl")) if path.stem != JUDGE]
    if plan is not None and people and plan.settings != _as_planned(stage.settings()):
        raise UserError(
            f"{folder} was drawn with other weights or settings, and {', '.join(people)} rated it; "
            f"move {folder.name}/ and {run.choices.name}/ aside first."
        )


def _as_planned(settings: dict[str, Any]) -> dict[str, Any]:
    """As a plan holds them: JSON knows no tuple."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


@functools.lru_cache(maxsize=1)
def _module(run: Path, data_root: str | None, weights: str) -> Any:
    """One a process, and for every checkpoint another."""
    from jobs.trained import load_trained

    return load_trained(RunFolder(run), data_root).module
