"""Stochastic binarisation (SB): the bottleneck that lets pitch through and keeps timbre out (Eq. (4))."""

from __future__ import annotations

from torch import Tensor


def binarise(probability: Tensor, threshold: Tensor | float) -> Tensor:
    """1 where ``probability`` exceeds ``threshold``, else 0; the gradient passes straight through (Bengio et al. 2013).

    Args:
        probability: (..., P) sigmoid of the pitch logits.
        threshold: the same shape, U(0, 1) in training, so that a bit is on with its own probability; 0.5 in evaluation.
    """
    bits = (probability > threshold).to(probability.dtype)
    return probability + (bits - probability).detach()
