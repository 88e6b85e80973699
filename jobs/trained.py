"""A trained run, ready to use: its config, its module with the weights that are meant to be used, and the data it knows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.configs import load_frozen
from models import registry
from pipeline import checkpoint, rng
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.manifest import Manifest, read_manifest
from pipeline.runs import RunFolder
from pipeline.train_module import TrainModule


@dataclass(frozen=True)
class Trained:
    run: RunFolder
    config: RunConfig
    module: TrainModule  # in evaluation mode, averaged weights where the run keeps them
    manifest: Manifest
    step: int


def load_trained(run: RunFolder) -> Trained:
    """The newest good checkpoint of ``run``; UserError where there is none yet or its data is not on this machine."""
    import torch

    config = load_frozen(run.config_file)
    data = Path((read_json(run.launch_file) or {}).get("data", ""))
    if not (data / "manifest.json").is_file():
        raise UserError(f"{run.name} was trained on {data}, which is not there; bring the data back to that place.")
    manifest = read_manifest(data)
    torch.manual_seed(rng.key(config.seed, "initial weights"))
    module = registry.part(config.model.system, "train_module").TrainModule(config, manifest.info)
    step = checkpoint.load_weights(module, run.path)
    module.eval()
    print(f"{run.name}: weights of step {step}", file=sys.stderr)
    return Trained(run, config, module, manifest, step)
