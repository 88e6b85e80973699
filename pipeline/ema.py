"""Exponential moving average of the weights: what is validated, sampled from and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def warmed_up(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)): the first steps do not remember the random start."""
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """Average of parameters by name, ema <- decay ema + (1 - decay) weight, after every step; the decay is warmed up."""

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._names = list(named)
        self._weights = list(named.values())
        self._average = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self._average, [p.detach() for p in self._weights], 1 - warmed_up(self.decay, step))

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._average, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if set(state) != set(self._names):
            differing = sorted(set(state) ^ set(self._names))
            raise KeyError(f"EMA weights of another architecture: {', '.join(differing[:5])}")
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module bears the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights, self._average, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
