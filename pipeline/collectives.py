"""Losses that couple samples, on groups of a size the config fixes: gathered across ranks where a group spans them.

Without this a correlation matrix would be taken over whatever a rank happens to hold, and the loss would change with
the number of GPUs. Outside a process group everything here is the single-process case.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import UserError


def world_size() -> int:
    """How many ranks train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of what the ranks hold, the same on all of them; without a gradient."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


class _Gather(torch.autograd.Function):
    """all_gather along dim 0, with a gradient.

    Every rank of a group computes the same loss from the same gathered tensor, so the gradients with respect to that
    tensor are equal on all of them: a rank takes its own rows of its own copy, times the number of ranks that share
    the loss, and no second collective is needed. Averaging over ranks (DDP) then gives the gradient of the mean loss.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: int, ranks: int) -> Tensor:
        ctx.own = slice((dist.get_rank() - first) * len(rows), (dist.get_rank() - first + 1) * len(rows))
        ctx.ranks = ranks
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts[first : first + ranks])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own] * ctx.ranks, None, None


def grouped(rows: Tensor, size: int, share: int, what: str) -> Tensor:
    """``rows`` (B, ...) of this rank as (groups, size, ...): ``size`` consecutive samples of the global batch each.

    Where ``size`` divides B the groups are this rank's own. Where B divides ``size``, neighbouring ranks hold a group
    together: it is gathered, and each of them computes the group's loss (the mean over ranks is the mean over groups).

    Args:
        share: samples of one global batch that this rank holds; more than B under gradient accumulation, where a group
            cannot span ranks because their micro-batches are not neighbours in the global batch.
        what: the config key that fixes ``size``, for the message.

    Raises:
        UserError: B and ``size`` do not divide, or the group is larger than the global batch.
    """
    held, world = len(rows), world_size()
    if held % size == 0:
        return rows.unflatten(0, (held // size, size))
    ranks = size // held
    if size % held or world % ranks or ranks > world or held != share:
        raise UserError(
            f"{what} is {size}, but each of {world} ranks holds {held} at once and {share} a step: it must divide "
            f"them or be a whole number of ranks' shares; set {what} or trainer.micro_batch accordingly."
        )
    first = dist.get_rank() // ranks * ranks
    return _Gather.apply(rows, first, ranks)[None]
