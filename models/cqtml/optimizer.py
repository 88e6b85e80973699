"""AdamW whose states have eight bits, where bitsandbytes is installed (Dettmers et al. 2110.02861)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.config import OptimizerChoice
from pipeline.errors import UserError


def eight_bit_adamw(parameters: Iterable[nn.Parameter], section: OptimizerChoice) -> torch.optim.Optimizer:
    """UserError where the package is missing, or another optimizer is asked for."""
    if section.name != "adamw":
        raise UserError(
            f"model.body.eight_bit is AdamW's, and optimizer.name is {section.name}: set optimizer.name=adamw."
        )
    try:
        import bitsandbytes
    except ModuleNotFoundError:
        raise UserError(
            "model.body.eight_bit needs bitsandbytes: pip install bitsandbytes, or set it to false."
        ) from None
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return bitsandbytes.optim.AdamW8bit(
        trained, lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )
