"""Weights that another trainer wrote, put into this run's network: a flat table of tensors, nothing else is unpickled."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from models.cd4mt.train_module import TrainModule
from models.codecs.tensors import load_exactly, read_tensors
from pipeline.errors import UserError

WRAPPERS = ("module.", "denoiser.network.")  # what data parallelism and our own export put before the names


def load_external(module: TrainModule, path: Path) -> None:
    """Replace the network's weights by those in ``path`` (.pth, .pt or .safetensors).

    Raises UserError where the file cannot be read, is no table of tensors, or where a weight is missing, unknown or of another shape: all
    of them are named.
    """
    if not path.is_file():
        raise UserError(f"--weights {path}: there is no such file; give a .pth, .pt or .safetensors file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tree = load_file(path)
        except SafetensorError as error:
            raise UserError(f"--weights {path} is no safetensors file that can be read ({error}).") from error
    else:
        tree = read_tensors(path)
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, Tensor) for value in tree.values()):
        holds = ", ".join(map(str, list(tree)[:5])) if isinstance(tree, dict) else type(tree).__name__
        raise UserError(f"--weights {path} must be one flat table of tensors by name; it holds: {holds or 'nothing'}.")
    state = {_bare(name): value.float() for name, value in tree.items()}
    load_exactly(module.denoiser.network, state, path, shown=None)


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
