"""From a system's name to its parts. A system is a folder in ``models/`` with these modules:

    config.py        class ModelConfig(pipeline.config.ModelSection)          no torch
    train_module.py  class TrainModule(pipeline.train_module.TrainModule)
    generate.py      add_arguments(parser); generate(module, args, data_folder, out) -> files written
    evaluate.py      evaluate(module, data_folder, out) -> figures

Adding a sixth system is adding a folder; nothing here changes.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from pipeline.config import ModelSection
from pipeline.errors import UserError, nearest


def systems() -> list[str]:
    """Names of the folders in ``models/`` that are systems."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/train_module.py"))


def part(system: str, module: str) -> ModuleType:
    """``models.<system>.<module>``; UserError where there is no such system."""
    if system not in systems():
        raise UserError(
            f"no system '{system}' in models/.{nearest(system, systems())} There are: {', '.join(systems())}."
        )
    return importlib.import_module(f"models.{system}.{module}")


def model_config_class(system: str) -> type[ModelSection]:
    return part(system, "config").ModelConfig
