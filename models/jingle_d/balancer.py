"""The gradient balancer of Défossez et al. (2210.13438, Section 3.4): a weight is a term's share of the gradient, whatever its scale.

g~ = R  sum_k  w_k / (sum_j w_j)  g_k / <|g_k|>,    g_k the gradient of term k at the decoded audio, <> its running average

Norms are those of a sample's gradient, and root mean squares over the samples of a step on all ranks, so they do not depend on the
number of ranks or of micro-batches. The average is of the steps before: what a step does depends on nothing that comes later in it. In
the very first step each piece is balanced by its own norms.

Shapes: B samples, n audio samples, K terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.jingle_d.config import BalancerSection
from pipeline.collectives import mean_over_ranks

LEAST = 1e-12  # of a norm that divides


class Balancer(nn.Module):
    """``names``: of the terms. Its state is two buffers, part of every checkpoint."""

    squares: Tensor  # (K,) running sums of squared norms
    weights: Tensor  # (K,) running sums of ones, which correct those for their beginning at zero

    def __init__(self, names: Sequence[str], section: BalancerSection) -> None:
        super().__init__()
        self.names, self.section = tuple(names), section
        self.register_buffer("squares", torch.zeros(len(self.names)))
        self.register_buffer("weights", torch.zeros(len(self.names)))
        self._seen: list[tuple[Tensor, Tensor, float]] = []  # of this step's pieces: squared norms, presence, samples

    def forward(self, gradients: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """Gradients (B, n) of means over the batch, by the names of their terms -> their balanced sum (B, n), again of a mean."""
        share = torch.zeros_like(self.squares)
        found = torch.zeros_like(self.squares)
        for index, name in enumerate(self.names):
            if name in gradients:
                found[index] = _squared_norm(gradients[name])
                share[index] = weights[name]
        if self.training:
            self._seen.append((found, (share > 0).float(), float(len(next(iter(gradients.values()))))))
        average = torch.where(self.weights > 0, self.squares / self.weights.clamp_min(LEAST), found)
        factor = self.section.total * share / share.sum() / average.clamp_min(LEAST**2).sqrt()
        return torch.stack([factor[self.names.index(name)] * value for name, value in gradients.items()]).sum(0)

    def settle(self) -> None:
        """Take the norms of this step into the average; once a step, on every rank."""
        if not self._seen:
            return
        found, present, samples = (
            torch.stack([torch.as_tensor(x) for x in each]) for each in zip(*self._seen, strict=True)
        )
        self._seen.clear()
        share = samples.to(found) / samples.sum()
        both = mean_over_ranks(torch.stack([(share[:, None] * found).sum(0), (share[:, None] * present).sum(0)]))
        decay = torch.where(both[1] > 0, self.section.decay, 1.0)  # a term without weight keeps what was known of it
        self.squares.mul_(decay).add_((1 - decay) * both[0])
        self.weights.mul_(decay).add_(1 - decay)


def _squared_norm(gradient: Tensor) -> Tensor:
    """Of the gradients of the samples' own terms, of which (B, n) is the mean's: a mean over samples."""
    return len(gradient) ** 2 * gradient.square().flatten(1).sum(1).mean()
