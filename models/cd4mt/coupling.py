"""Which noise goes with which latents: within a group of samples, the assignment with the least squared distance in all.

Straighter ways from noise to data leave a consistency model less to bridge (optimal-transport coupling of minibatches, as in 2502.01441).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import UserError


def coupled(clean: Tensor, noise: Tensor, size: int) -> Tensor:
    """``noise`` (B, ...), reordered within every ``size`` consecutive samples.

    The group is the config's, not what a rank happens to hold: UserError where B is no multiple of it.
    """
    from scipy.optimize import linear_sum_assignment  # late: only who couples waits for it

    if len(clean) % size:
        raise UserError(
            f"model.coupling_group is {size}, but a rank holds {len(clean)} samples at once: set one that divides them, "
            "or trainer.micro_batch accordingly."
        )
    agreement = [a.flatten(1) @ b.flatten(1).T for a, b in zip(clean.split(size), noise.split(size), strict=True)]
    orders = [linear_sum_assignment(part.double().cpu().numpy(), maximize=True)[1] for part in agreement]
    return torch.cat([part[order] for part, order in zip(noise.split(size), orders, strict=True)])
