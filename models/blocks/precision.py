"""What must be exact also inside a model that computes in bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
EXACT = ("highest", False)  # torch's words for float32 without TF32, in products and in convolutions
KEPT = 16  # results of one function: a CQT's wavelets take megabytes for every length of signal


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with autocast switched off within; on a GPU its products are as exact as the run's float32 (``trainer.precision``)."""

    @functools.wraps(function)
    def wide(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wide


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with autocast and TF32 switched off within."""

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        if before == EXACT or torch.compiler.is_compiling():
            return wide(*args, **kwargs)
        _choose(*EXACT)
        try:
            return wide(*args, **kwargs)
        finally:
            _choose(*before)

    wide = without_autocast(function)
    return exact


def _choose(products: str, fast_convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = fast_convolutions


def kept_for_all(make: Callable[P, R]) -> Callable[P, R]:
    """Remember what ``make`` returns for its arguments, made outside of inference mode: such tensors could pass no gradients later."""

    @functools.lru_cache(maxsize=KEPT)
    def kept(*args: Any) -> R:
        with torch.inference_mode(False):
            return make(*args)  # type: ignore[call-arg]

    return cast(Callable[P, R], kept)
