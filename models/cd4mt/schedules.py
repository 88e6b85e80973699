"""The schedules of consistency training and of sampling, each with the equation it is.

They are pure functions of the step, so nothing is carried over a restart. A step k counts from 0 here, as in the papers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.cd4mt.config import Cm, Ect, Ict, LogNormal


def karras_sigmas(count: int, low: float, high: float, rho: float) -> Tensor:
    """(count,) float64 noise levels from ``high`` down to ``low`` (Karras et al. 2206.00364, Table 1, without its last 0)."""
    if count == 1:
        return torch.tensor([high], dtype=torch.float64)
    at = torch.arange(count, dtype=torch.float64) / (count - 1)
    return (high ** (1 / rho) + at * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def cm_levels(step: int, section: Cm) -> int:
    """N(k) = ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1 (2303.01469, Appendix C)."""
    done = min(1.0, step / section.steps)
    return math.ceil(math.sqrt(done * ((section.last + 1) ** 2 - section.first**2) + section.first**2) - 1) + 1


def cm_teacher_decay(step: int, section: Cm) -> float:
    """mu(k) = exp(s_0 ln(mu_0) / N(k)) (2303.01469, Appendix C)."""
    return math.exp(section.first * math.log(section.decay) / cm_levels(step, section))


def ict_levels(step: int, section: Ict) -> int:
    """N(k) = min(s_0 2^floor(k / K'), s_1) + 1, K' = floor(K / (log2 floor(s_1 / s_0) + 1)) (2310.14189, Table 1)."""
    doublings = math.log2(section.last // section.first)
    stage = max(1, math.floor(section.steps / (doublings + 1)))
    grown = section.first * 2 ** min(step // stage, 40)
    return int(min(grown, section.last)) + 1


def lognormal_shares(sigmas: Tensor, noise: LogNormal) -> Tensor:
    """(N - 1,) probabilities of the intervals between ascending ``sigmas`` (N,): the log-normal's mass in each (2310.14189, Table 1)."""
    edges = torch.erf((sigmas.log() - noise.mean) / (math.sqrt(2) * noise.deviation))
    mass = edges.diff()
    return mass / mass.sum()


def ect_partner(sigma: Tensor, step: int, section: Ect) -> Tensor:
    """r = t max(0, 1 - n(t) q^-(s + 1)), n(t) = 1 + k sigmoid(-t), of the stage s of the step (2406.14548, its sigmoid mapping).

    0, which is diffusion, before the first stage.
    """
    if step < section.diffusion_steps:
        return torch.zeros_like(sigma)
    stage = min((step - section.diffusion_steps) // section.stage_steps, section.stages - 1)
    closeness = 1 - (1 + section.k * torch.sigmoid(-sigma)) / section.q ** (stage + 1)
    return sigma * closeness.clamp_min(0)


def scm_warmup(step: int, steps: int) -> float:
    """r = min(1, k / H) (2410.11081, Algorithm 1)."""
    return min(1.0, step / steps) if steps else 1.0
