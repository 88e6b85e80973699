"""Activation checkpointing (Chen et al. 1604.06174): what a part of a network computed is not kept for the backward, but computed again.

Memory for time: of a part only its inputs stay. What is learned is the same to the bit: the graph is the same one (torch's non-reentrant
checkpoint only keeps something else at its nodes), and what dropout drew is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_again = False


def under_way() -> bool:
    """Whether what is computed right now was computed before: no part of what a step has to compute."""
    return _again


def compute_again(parts: Iterable[nn.Module]) -> None:
    """From now on these keep nothing but their inputs; where there is no gradient they are as they were. No part within another."""
    for part in parts:
        part.forward = partial(_sparing, part.forward)


def _sparing(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    if torch.compiler.is_compiling():  # a compiled part takes no other contexts
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=_contexts, **named)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around a part's forward, and around its second one."""
    return nullcontext(), _second()


@contextmanager
def _second() -> Iterator[None]:
    global _again
    _again = True
    try:
        yield
    finally:
        _again = False
