"""What must be exact also inside a model that computes in bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
KEPT = 16  # results of one function: a CQT's wavelets take megabytes for every length of signal


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with autocast switched off within."""

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return exact


def kept_for_all(make: Callable[P, R]) -> Callable[P, R]:
    """Remember what ``make`` returns for its arguments, made outside of inference mode: such tensors could pass no gradients later."""

    @functools.lru_cache(maxsize=KEPT)
    def kept(*args: Any) -> R:
        with torch.inference_mode(False):
            return make(*args)  # type: ignore[call-arg]

    return cast(Callable[P, R], kept)
