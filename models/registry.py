"""From a config's model section to the parts of its system. A system is a folder in ``models/`` with these modules:

    config.py        class ModelConfig(pipeline.config.ModelSection)          no torch
    train_module.py  class TrainModule(pipeline.train_module.TrainModule)
    generate.py      add_arguments(parser); generate(module, args, data_folder, out) -> files written
    evaluate.py      evaluate(module, data_folder, out) -> figures

``data_folder`` need not be there where only the user's own files are read. A system with several kinds of runs has the last three in a
folder for each kind (``ModelSection.part_folder``). Adding a sixth system is adding a folder; nothing here changes.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from pipeline.config import ModelSection
from pipeline.errors import UserError, nearest


def systems() -> list[str]:
    """Names of the folders in ``models/`` that are systems."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/config.py"))


def part(model: ModelSection, module: str) -> ModuleType:
    """``train_module``, ``generate`` or ``evaluate`` of what a config describes."""
    return importlib.import_module(f"models.{model.part_folder.replace('/', '.')}.{module}")


def model_config_class(system: str) -> type[ModelSection]:
    """UserError where there is no such system."""
    if system not in systems():
        raise UserError(
            f"no system '{system}' in models/.{nearest(system, systems())} There are: {', '.join(systems())}."
        )
    return importlib.import_module(f"models.{system}.config").ModelConfig
