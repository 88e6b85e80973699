"""The one door to Lightning Fabric; everybody imports it from here.

``import lightning.fabric`` brings in Lightning's Trainer first, and with it torchmetrics, SciPy and Matplotlib: half of the seconds that a
rank takes to start, at every requeue. The loop needs none of it. So while Fabric is imported, its parent package is
taken without its ``__init__`` and torchmetrics is known by its version only; afterwards both can be imported whole, by whoever wants them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.metadata import version
from types import ModuleType


@contextmanager
def _bare(*packages: str) -> Iterator[None]:
    """Within the block these packages have a place and a version, and their ``__init__`` is not run; imported ones stay as they are."""
    added = []
    for package in packages:
        spec = PathFinder.find_spec(package)
        if package in sys.modules or spec is None or spec.submodule_search_locations is None:
            continue
        module = ModuleType(package)
        module.__spec__, module.__path__ = spec, list(spec.submodule_search_locations)
        module.__version__ = version(package)  # type: ignore[attr-defined]
        sys.modules[package] = module
        added.append(package)
    try:
        yield
    finally:
        for package in added:
            del sys.modules[package]


with _bare("lightning", "torchmetrics"):
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

__all__ = ["ClusterEnvironment", "DDPStrategy", "Fabric", "SingleDeviceStrategy", "Strategy"]
