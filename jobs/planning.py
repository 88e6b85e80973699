"""What a launch is about to do: which run, with which config and data, on which machine; and its folder, made or updated.

Nothing is written before ``prepare_folder``.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import snapshot
from jobs.clusters import Cluster
from jobs.configs import ROOT, check_data, data_root, find_data, load_frozen, load_named
from pipeline.config import RunConfig, differences, identity_of
from pipeline.errors import UserError
from pipeline.files import read_json, write_atomic, write_json
from pipeline.manifest import Manifest
from pipeline.runs import RunFolder, find_run, runs_root


def say(text: str) -> None:
    """A line for the person; stdout is for programs."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Where:
    """On which machine, how wide, and where things lie, as typed; None: what the profile or the environment says."""

    cluster_name: str
    cluster: Cluster
    nodes: int
    gpus: int | None
    data: str | None
    runs: str | None

    @property
    def runs_root(self) -> Path:
        return runs_root(self.runs, self.cluster.runs)

    @property
    def width(self) -> int:
        """Processes a node: what was asked, else the profile's GPUs, else (local) this machine's GPUs or one CPU process."""
        if self.gpus:
            return self.gpus
        if self.cluster.scheduler == "slurm":
            return self.cluster.gpus_per_node
        return max(1, gpus_here())


DEVICES = Path("/dev")


def gpus_here() -> int:
    """GPUs of this machine that this shell may use, without asking torch."""
    there = len(list(DEVICES.glob("nvidia[0-9]*")))
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return there
    return min(there, len([word for word in shown.split(",") if word.strip() not in ("", "-1", "NoDevFiles")]))


@dataclass(frozen=True)
class Plan:
    """A run that is to go on."""

    run: RunFolder
    config: RunConfig
    manifest: Manifest | None  # None only in a dry run on a machine without the data
    where: Where

    @property
    def world_size(self) -> int:
        return self.where.nodes * self.where.width


def plan_named(
    name: str, overrides: list[str], where: Where, chain: Chain | None = None, *, new: bool, dry: bool
) -> Plan:
    """The run of ``configs/<name>.yaml``, possibly one of a ``chain``. UserError for a mistake or missing data."""
    config = resolve_runs(load_named(name, overrides), where.runs_root, chain or Chain())
    manifest = None
    try:
        manifest = data_for(config, where, dry=dry)
    except UserError as error:
        if not dry:
            raise
        say(f"note: {error}\nnote: without the data the run's identity below is provisional.")
    identity = identity_of(config, manifest.identity if manifest else "no data")
    run = RunFolder(where.runs_root / name / identity)
    if new and run.path.exists():
        taken = [int(p.name.partition("-")[2] or 1) for p in run.path.parent.glob(f"{identity}*")]
        run = RunFolder(run.path.with_name(f"{identity}-{max(taken) + 1}"))
    if run.config_file.is_file():  # its own config goes on, with this launch's budget
        asked, config = config, merge_budget(load_frozen(run.config_file), config)
        tell_what_stays(run, differences(config, asked), overrides)
    return Plan(run, config, manifest, where)


def tell_what_stays(run: RunFolder, changed: dict[str, tuple[Any, Any]], overrides: list[str]) -> None:
    """What a ``--resume --set`` has made otherwise than the config's file says stays so. UserError where just that was typed."""
    typed = [text.partition("=")[0].strip() for text in overrides]
    against = [key for key in changed if any(key == name or key.startswith(f"{name}.") for name in typed)]
    stays = ", ".join(f"{key}={changed[key][0]!r}" for key in against or changed)
    if against:
        words = " ".join(f"--set {text}" for text in overrides)
        raise UserError(
            f"{run.name} goes on with {stays} since a --resume changed it; to change it again type "
            f"python jobs/launch.py --resume {run.name} {words}, or for another run add --new."
        )
    if changed:
        say(f"note: {run.name} goes on with {stays}, as a --resume left it.")


def data_for(config: RunConfig, where: Where, *, dry: bool = False) -> Manifest:
    """The data of a config: prepared, or made by a run that it names. UserError where they are not there."""
    if config.data.of is None:
        return find_data(config, data_root(where.data or where.cluster.data))
    from jobs.choices import newest, sealed  # late: NumPy is a fifth of the time that a launch takes

    run = find_run(config.data.of, where.runs_root)
    manifest = newest(run) if dry else sealed(run)
    return check_data(config, manifest.folder, manifest.folder.parent)


@dataclass(frozen=True)
class Chain:
    """What the links of a chain before this one were: ``previous``, and each of them by its config's name."""

    previous: RunFolder | None = None
    runs: Mapping[str, RunFolder] = field(default_factory=dict)

    def after(self, name: str, run: RunFolder) -> Chain:
        return Chain(run, {**self.runs, name: run})

    def find(self, text: str, root: Path, what: str) -> RunFolder:
        """The run that a config calls ``text``: "previous", a config of this chain, or any run below ``root``."""
        if text == "previous" and self.previous is None:
            raise UserError(
                f"{what}: previous stands for the run before in a chain (--then); here there is none: name a run."
            )
        if text == "previous" and self.previous:
            return self.previous
        return self.runs.get(text) or find_run(text, root)


def resolve_runs(config: RunConfig, root: Path, chain: Chain) -> RunConfig:
    """Other runs by their names (``cd4mt/1f3a9c2e``), so that the frozen config says exactly which, and no host's path."""
    names = {what: chain.find(text, root, what).name for what, text in other_runs(config).items()}
    start = names.pop("init_from", None)
    of = chain.find(config.data.of, root, "data.of").name if config.data.of else None
    changed = {"init_from": start, "model": config.model.model_copy(update=names)}
    return config.model_copy(update=changed | {"data": config.data.model_copy(update={"of": of})})


def other_runs(config: RunConfig) -> dict[str, str]:
    """What a config needs of other runs: "init_from" and its model's own fields, as they are named."""
    wanted = {"init_from": config.init_from} | {name: getattr(config.model, name) for name in type(config.model).runs}
    return {what: text for what, text in wanted.items() if text is not None}


def plan_resume(text: str, overrides: list[str], where: Where) -> Plan:
    """The run ``text`` names, with ``overrides`` on its own config; UserError where they would make it another run."""
    run = find_run(text, where.runs_root)
    old = load_frozen(run.config_file)
    config = load_frozen(run.config_file, overrides)
    refuse_other_run(run, old, config)
    folder = Path((read_json(run.launch_file) or {}).get("data", ""))
    if where.data and config.data.of is None:
        manifest = find_data(config, data_root(where.data))
    else:
        manifest = check_data(config, folder, folder.parent)
    trained_on = next((e["data"] for e in reversed(run.history()) if "data" in e), manifest.identity)
    if manifest.identity != trained_on:
        raise UserError(
            f"{manifest.folder} is not the data that {run.name} was trained on; point --data at that, or launch a new run."
        )
    return Plan(run, config, manifest, where)


def merge_budget(frozen: RunConfig, asked: RunConfig) -> RunConfig:
    """The frozen config with the budget and host facts that were asked for now: they are not part of a run's identity."""
    data = frozen.data.model_copy(update={"workers": asked.data.workers})
    kept = {"precision", "grad_clip", "ema"}
    budget = {k: getattr(asked.trainer, k) for k in type(asked.trainer).model_fields if k not in kept}
    return frozen.model_copy(update={"data": data, "trainer": frozen.trainer.model_copy(update=budget)})


def refuse_other_run(run: RunFolder, old: RunConfig, new: RunConfig) -> None:
    """A run may change its loss weights, learning rate, schedules and budget; another architecture or other data is another run."""
    changed = differences(old, new)
    live = [f"model.{name}" for name in type(new.model).live] + ["data.workers"]
    refused = {
        k: v
        for k, v in changed.items()
        if not any(k == name or k.startswith(f"{name}.") for name in live)
        and (re.fullmatch(r"optimizer(\.also\.\w+)?\.name", k) or not k.startswith(("trainer.", "optimizer.")))
    }
    if refused:
        shown = "; ".join(f"{key}: {before!r} -> {after!r}" for key, (before, after) in refused.items())
        raise UserError(
            f"{run.name} cannot go on with another architecture, data or seed ({shown}); "
            f"launch a new run instead: python jobs/launch.py {run.path.parent.name} --set ..."
        )


def prepare_folder(plan: Plan, rewind_to: int | None) -> None:
    """Make or update the run folder: frozen config, code snapshot, what changed, and the step to go back to."""
    assert plan.manifest is not None
    run = plan.run
    new = not run.history_file.exists()
    try:
        run.create()
    except OSError as error:
        raise UserError(
            f"{run.path} cannot be made: {error.strerror}; choose a folder for runs with --runs."
        ) from error
    if new:  # the config before the event: killed in between, it is still a new run, and one that can be read
        write_atomic(run.config_file, plan.config.to_yaml().encode())
        run.record("created", config=plan.config.model_dump(mode="json"))
    elif changed := changes(plan):
        at = rewind_to if rewind_to is not None else (run.steps() or [0])[-1]
        run.record("changed", after_step=at, changes={key: {"from": a, "to": b} for key, (a, b) in changed.items()})
        say_changes(changed)
    if rewind_to is not None:
        rewind(run, rewind_to)
    write_atomic(run.config_file, plan.config.to_yaml().encode())
    taken = snapshot.take(ROOT, run.code)
    last = next((e for e in reversed(run.history()) if e["event"] == "code"), None)
    if last is None or last["hash"] != taken.hash:
        run.record(
            "code", hash=taken.hash, commit=taken.commit, uncommitted_changes=taken.changed, left_out=taken.left_out
        )
    where = plan.where
    host = {"data": str(plan.manifest.folder), "cluster": where.cluster_name, "nodes": where.nodes, "gpus": where.width}
    write_json(run.launch_file, host)
    data = plan.manifest
    facts = {"identity": data.identity, "recipe": data.recipe, "codec": data.codec, "info": data.info}
    write_json(run.data_file, facts)


def changes(plan: Plan) -> dict[str, tuple[Any, Any]]:
    """What of the run's config this launch makes otherwise: ``{"trainer.max_steps": (500, 800)}``."""
    return differences(load_frozen(plan.run.config_file), plan.config) if plan.run.config_file.is_file() else {}


def say_changes(changed: dict[str, tuple[Any, Any]]) -> None:
    if changed:
        say("changed: " + ", ".join(f"{key} {a!r} -> {b!r}" for key, (a, b) in changed.items()))


def rewind(run: RunFolder, step: int) -> None:
    """Set later checkpoints aside, so that the run goes on from ``step``; nothing is deleted."""
    present = run.steps()
    if step not in present:
        raise UserError(
            f"{run.name} has no checkpoint at step {step}; it has: {', '.join(map(str, present)) or 'none'}."
        )
    aside = run.path / "rewound" / time.strftime("%Y%m%d-%H%M%S")
    for later in (s for s in present if s > step):
        aside.mkdir(parents=True, exist_ok=True)
        folder = run.checkpoints / f"step_{later:09d}"
        folder.rename(aside / folder.name)
    run.record("rewound", to_step=step, kept_in=str(aside.relative_to(run.path)))
