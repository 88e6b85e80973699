"""Weights from files into modules: nothing is unpickled but tensors, and no weight is left as it was drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError

SHOWN = 5  # names in an error


def read_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, as long as that is tensors and plain containers; else UserError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no file of plain tensors, and nothing else is loaded ({reason}).") from error


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], path: Path, shown: int | None = SHOWN) -> None:
    """Load ``state``, read from ``path``; UserError that lists what is missing, unknown or of another shape, at most ``shown`` names."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    refuse_differences(
        path,
        shown,
        missing=sorted(own.keys() - given.keys()),
        unknown=sorted(given.keys() - own.keys()),
        reshaped=sorted(name for name in own.keys() & given.keys() if own[name] != given[name]),
    )
    module.load_state_dict(state)


def refuse_differences(path: Path, shown: int | None = SHOWN, /, **names: list[str]) -> None:
    """UserError where any of the lists (what is wrong: names of weights) is not empty."""
    wrong = [f"{what} {name}" for what, listed in names.items() for name in listed]
    if wrong:
        left = len(wrong[shown:]) if shown else 0
        more = f" and {left} more" if left else ""
        raise UserError(f"{path} holds weights of another architecture: {', '.join(wrong[:shown])}{more}.")


def freeze(module: nn.Module, device: torch.device) -> None:
    """Put it in evaluation mode and on ``device``, without gradients of its own."""
    module.eval().requires_grad_(False).to(device)
