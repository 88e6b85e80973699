"""The paper's figures for a trained run of either case, on held-out mixtures, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.dismix.train_module import TrainModule
from models.metrics import Figure


def evaluate(module: TrainModule, data_folder: Path, out: Path, split: str = "test") -> Mapping[str, Figure | float]:
    """The figures by name, shares in [0, 1] and errors in decibels; judges and pictures go to ``out``."""
    if module.model_config.case == "ldm":
        from models.dismix.ldm import evaluate as ldm
        from models.dismix.ldm.training import LdmModule

        assert isinstance(module, LdmModule)
        return ldm.evaluate(module, data_folder, out, split)
    from models.dismix.simple import evaluate as simple
    from models.dismix.simple.training import SimpleModule

    assert isinstance(module, SimpleModule)
    return simple.evaluate(module, data_folder, out, split)
