"""From what was typed to a validated config: ``configs/<name>.yaml``, ``--set``, and where data, runs and weights lie."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep import demo
from data_prep.prepare import DATASETS, find_stage
from models import registry
from models.cqtml.config import PairsConfig
from pipeline.config import RunConfig, Section, apply_overrides, merged, parse_config, parse_section, read_yaml
from pipeline.errors import UserError, nearest
from pipeline.manifest import Manifest, read_manifest

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def config_names() -> list[str]:
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def load_named(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of ``configs/<name>.yaml`` with ``--set`` applied; UserError for an unknown name, key or type."""
    config = load_link(name, overrides)
    if isinstance(config, PairsLink):
        raise UserError(f"{name} trains nothing, it makes pairs to compare: python jobs/launch.py {name}")
    return config


def load_link(name: str, overrides: Sequence[str] = ()) -> RunConfig | PairsLink:
    """As ``load_named``, or what makes the data of the next link of a chain."""
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        names = config_names()
        raise UserError(f"no config '{name}' in configs/.{nearest(name, names)} There are: {', '.join(names)}.")
    tree = apply_overrides(_with_base(path), overrides)
    where = " ".join([f"configs/{name}.yaml", *(f"--set {text}" for text in overrides)])
    return parse_tree(tree, where) if "pairs" not in tree else parse_section(tree, PairsLink, where)


class PairsLink(Section):
    """A file of ``configs/`` that describes no training, but the pairs that a reward is trained on."""

    pairs: PairsConfig


def _with_base(path: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a file holds on top of the config that its ``base`` names: sections are merged, everything else is replaced."""
    tree = read_yaml(path)
    if "base" not in tree:
        return tree
    base = tree.pop("base")
    if base == path.stem or base in above or not (CONFIGS / f"{base}.yaml").is_file():
        raise UserError(f"{path}: 'base' names another config, not '{base}'. There are: {', '.join(config_names())}.")
    return merged(_with_base(CONFIGS / f"{base}.yaml", (*above, path.stem)), tree)


def load_frozen(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config a run was frozen with, and ``--set`` on top of it."""
    return parse_tree(apply_overrides(_as_keys_are_now(read_yaml(path)), overrides), str(path))


def _as_keys_are_now(tree: dict[str, Any]) -> dict[str, Any]:
    """Runs of CD4MT and CQTML were frozen with a key of their own for what is now ``trainer.activation_checkpointing``."""
    model, trainer = tree.get("model"), tree.get("trainer")
    for part in ("unet", "body"):
        section = model.get(part) if isinstance(model, dict) else None
        if isinstance(section, dict) and section.pop("gradient_checkpointing", False) and isinstance(trainer, dict):
            trainer.setdefault("activation_checkpointing", True)
    return tree


def parse_tree(tree: dict[str, Any], where: str) -> RunConfig:
    model = tree.get("model")
    system = model.get("system") if isinstance(model, dict) else None
    if not isinstance(system, str):
        raise UserError(
            f"{where}: 'model.system' is missing; it names a folder in models/: {', '.join(registry.systems())}."
        )
    return parse_config(tree, registry.model_config_class(system), where)


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the parts of a run lie and what it runs on: the same for all that use a trained run."""
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    parser.add_argument("--data", metavar="DIR", help="data root; default: where the run was trained")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")


@contextmanager
def output_folder(given: str | None, default: Path) -> Iterator[Path]:
    """Where a command writes, made if it is not there, and gone again where nothing was written; UserError where it cannot be made."""
    folder = Path(given) if given else default
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be a folder to write in: {error.strerror}; choose another.") from None
    try:
        yield folder
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def data_root(given: str | None) -> Path:
    return Path(given or os.environ.get("SLURMPHONY_DATA") or ROOT / "data").absolute()


def prepare_command(config: RunConfig) -> str:
    codec = f" --codec {config.data.codec}" if config.data.codec else ""
    recipe = config.data.recipe
    return f"python data_prep/prepare.py {_dataset_of(recipe)} --source FOLDER --recipe {recipe}{codec}"


def _dataset_of(recipe: str) -> str:
    """UserError where no dataset has it."""
    named = [name for name in DATASETS if f"{recipe}_".startswith(f"{name}_")]
    if not named:
        raise UserError(
            f"data.recipe '{recipe}' is of no dataset.{nearest(recipe, DATASETS)} A recipe begins with its dataset's name: "
            f"{', '.join(DATASETS)}."
        )
    return max(named, key=len)


def _nothing_prepared(config: RunConfig, folder: Path, root: Path) -> UserError:
    """With what makes it, and for a demo what makes the corpus that it is made of. Imports what the command line does without."""
    recipe = config.data.recipe
    find_stage(_dataset_of(recipe), recipe)
    again = f"{prepare_command(config)} --out {root}"
    corpora = [name for name, module in demo.DATASETS.items() if recipe == importlib.import_module(module).RECIPE]
    before = f"python data_prep/demo.py {corpora[0]} --out FOLDER && " if corpora else ""
    return UserError(f"no prepared data in {folder}; make it with: {before}{again}")


def find_data(config: RunConfig, root: Path) -> Manifest:
    """The manifest of the shards a config reads; UserError names the prepare command, or what lies there instead."""
    return check_data(config, root / config.data.folder_name, root)


def check_data(config: RunConfig, folder: Path, root: Path) -> Manifest:
    """The manifest in ``folder``, which lies below the data ``root``; UserError where it is not what the config reads."""
    if not (folder / "manifest.json").is_file():
        raise _nothing_prepared(config, folder, root)
    manifest = read_manifest(folder)
    if (manifest.recipe, manifest.codec) != (config.data.recipe, config.data.codec):
        found = manifest.recipe if manifest.codec is None else f"{manifest.recipe} with codec {manifest.codec}"
        raise UserError(
            f"{folder} holds shards of {found}, this config reads {config.data.folder_name}; "
            f"point --data at the right data root, or prepare them with: {prepare_command(config)} --out {root}"
        )
    if manifest.samples("train") == 0:
        raise UserError(f"{folder} has no training samples; prepare it again from a source with a train split.")
    return manifest
