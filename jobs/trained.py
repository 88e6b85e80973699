"""A trained run, ready to use: its config, its module with the weights that are meant to be used, and what it knows of its data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.configs import load_frozen
from models import registry
from pipeline import checkpoint, rng
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.runs import RunFolder
from pipeline.train_module import TrainModule


@dataclass(frozen=True)
class Trained:
    run: RunFolder
    config: RunConfig
    module: TrainModule  # in evaluation mode, averaged weights where the run keeps them
    data: dict[str, Any]  # "identity", "recipe", "codec" and "info" of the data it was trained on
    data_folder: Path  # where that data lies, if it is on this machine
    step: int

    def require_data(self) -> Path:
        """The data's folder; UserError where it is not here, or holds other data."""
        if not (self.data_folder / MANIFEST).is_file():
            raise UserError(
                f"{self.run.name} was trained on {self.data_folder}, which is not there; give the data root with --data."
            )
        if read_manifest(self.data_folder).identity != self.data["identity"]:
            raise UserError(
                f"{self.data_folder} is not the data that {self.run.name} was trained on; give its data root with --data."
            )
        return self.data_folder


def load_trained(run: RunFolder, data_root: str | None = None, device: str = "cpu") -> Trained:
    """The newest good checkpoint of ``run``, on ``device``; UserError where there is none yet. Its data need not be on this machine."""
    import torch

    config = load_frozen(run.config_file)
    folder = Path((read_json(run.launch_file) or {}).get("data", ""))
    if data_root is not None:
        folder = Path(data_root) / config.data.folder_name
    data = read_json(run.data_file)
    if data is None:
        raise UserError(f"{run.data_file} is missing; pull the run again, or launch it again where its data is.")
    torch.manual_seed(rng.key(config.seed, "initial weights"))
    module = registry.part(config.model, "train_module").TrainModule(config, data["info"])
    step = checkpoint.load_weights(module, run.path)
    try:
        module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}; cpu always works.") from None
    print(f"{run.name}: weights of step {step}", file=sys.stderr)
    return Trained(run, config, module, data, folder, step)
