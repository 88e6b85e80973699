"""What is minimised on a batch, by the objective that a config names: one number a sample.

Student and teacher see the same noise and the same dropout (2310.14189, Table 1): the teacher's pass is made within a fork
of torch's generators.

Shapes: B samples, S stems, C latent channels, L frames. ``clean`` has deviation sigma_data, ``noise`` 1; ``draw`` (B,) is U(0, 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from models.cd4mt.config import LogNormal, ModelConfig
from models.cd4mt.denoiser import Denoiser, rows
from models.cd4mt.distances import distance
from models.cd4mt.schedules import cm_levels, ect_partner, ict_levels, karras_sigmas, lognormal_shares, scm_warmup

LAST = 10**12  # a step at which every schedule has ended


@contextmanager
def as_teacher(device: torch.device) -> Iterator[None]:
    """No gradient, and what dropout draws within is drawn again behind."""
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        yield


def lognormal(draw: Tensor, noise: LogNormal) -> Tensor:
    """sigma (B,) of U(0, 1) draws."""
    return (noise.mean + noise.deviation * torch.special.ndtri(draw.double().clamp(1e-9, 1 - 1e-9))).exp().float()


def objective(
    config: ModelConfig, student: Denoiser, teacher: Denoiser, clean: Tensor, noise: Tensor, draw: Tensor, step: int
) -> Tensor:
    """(B,) at optimizer step ``step``, which counts from 1."""
    match config.objective:
        case "edm":
            return _edm(config, student, clean, noise, lognormal(draw, config.edm.noise))
        case "ect":
            sigma = lognormal(draw, config.ect.noise)
            near = ect_partner(sigma, step - 1, config.ect)
            weight = 1 / (sigma - near)
            if config.ect.weight == "snr":
                weight = weight * sigma * _snr_weight(config, sigma)
            diffusing = step <= config.ect.diffusion_steps
            return weight * _consistency(config, student, teacher, clean, noise, sigma, None if diffusing else near)
        case "scm":
            warmup = scm_warmup(step - 1, config.scm.warmup_steps)
            return _scm(config, student, clean, noise, lognormal(draw, config.scm.noise), warmup)
        case "cm" | "ict":
            near, sigma = _neighbours(config, draw, step - 1)
            found = _consistency(config, student, teacher, clean, noise, sigma, near)
            return found if config.objective == "cm" else found / (sigma - near)  # lambda, 2310.14189, Table 1


def _edm(config: ModelConfig, student: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """lambda |D(x + n; sigma) - x|^2 a number, lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (2206.00364, Table 1)."""
    error = student(clean + rows(sigma, clean) * noise, sigma) - clean
    return _snr_weight(config, sigma) * error.square().flatten(1).mean(1)


def _snr_weight(config: ModelConfig, sigma: Tensor) -> Tensor:
    """1 / sigma^2 + 1 / sigma_data^2, under which the network's own output counts the same at every level."""
    return (sigma**2 + config.sigma_data**2) / (sigma * config.sigma_data) ** 2


def _neighbours(config: ModelConfig, draw: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Two levels next to each other, (B,) each: uniformly drawn for CM, log-normally for iCT."""
    levels = cm_levels(step, config.cm) if config.objective == "cm" else ict_levels(step, config.ict)
    sigmas = karras_sigmas(levels, config.sigma_min, config.sigma_max, config.rho).flip(0)
    sigmas = sigmas.to(draw.device, non_blocking=True)
    if config.objective == "cm":
        number = (draw * (levels - 1)).long()
    else:
        number = torch.searchsorted(lognormal_shares(sigmas, config.ict.noise).cumsum(0), draw.double(), right=True)
    number = number.clamp_max(levels - 2)
    return sigmas[number].float(), sigmas[number + 1].float()


def _consistency(
    config: ModelConfig,
    student: Denoiser,
    teacher: Denoiser,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    near: Tensor | None,
) -> Tensor:
    """d(f(x + sigma z, sigma), f(x + near z, near)) (2303.01469, Section 5); where ``near`` is 0 (None: everywhere) the teacher's answer
    is x itself. Whether it is 0 everywhere is known from the step: to ask the device would make it wait."""
    wanted = clean
    if near is not None:
        with as_teacher(clean.device):
            level = near.clamp_min(config.sigma_min * 1e-3)  # ln(0) is no level; the answer there is not used
            wanted = torch.where(rows(near, clean) > 0, teacher(clean + rows(near, clean) * noise, level), clean)
    found = student(clean + rows(sigma, clean) * noise, sigma)
    return distance(found, wanted, config.distance, config.distance_scale)


def _scm(config: ModelConfig, student: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, warmup: float) -> Tensor:
    """|F - F^- - g / (|g| + c)|^2 a number (2410.11081, Algorithm 1), with weight 1 / (sigma_data tan t).

    |g| is a root mean square, so that c means the same for every size. The paper's adaptive weight is left out: it changes how levels are
    balanced and not what is learned at each.
    """
    angle = torch.atan(sigma / config.sigma_data)
    with as_teacher(clean.device):
        turned, tangent = scm_tangent(student, clean, noise, angle, warmup)
        size = tangent.square().flatten(1).mean(1).sqrt()
        tangent = tangent / rows(size + config.scm.tangent, clean)
    moved, _ = trajectory(clean, noise, angle, config.sigma_data)
    found = -student.raw(moved / config.sigma_data, angle)
    return (found - turned - tangent).square().flatten(1).mean(1)


def trajectory(clean: Tensor, noise: Tensor, angle: Tensor, data: float) -> tuple[Tensor, Tensor]:
    """x_t = cos(t) x + sin(t) z of TrigFlow, z of deviation sigma_data, and its derivative by t; (B, S, C, L) each."""
    cos, sin = rows(angle.cos(), clean), rows(angle.sin(), clean)
    return cos * clean + sin * data * noise, cos * data * noise - sin * clean


def scm_tangent(student: Denoiser, clean: Tensor, noise: Tensor, angle: Tensor, warmup: float) -> tuple[Tensor, Tensor]:
    """F and g = cos(t) df/dt of f(x_t, t) = cos(t) x_t - sin(t) sigma_data F, the part that amplifies errors times ``warmup``.

    By forward-mode differentiation, the directions scaled by cos(t) sin(t), so that nothing overflows at the ends (2410.11081, Section 4).
    """
    data = student.sigma_data
    moved, speed = trajectory(clean, noise, angle, data)
    cos, sin = rows(angle.cos(), clean), rows(angle.sin(), clean)
    turned, turning = torch.func.jvp(  # type: ignore[misc]  # two without auxiliary output
        lambda x, t: -student.raw(x, t),  # the paper's F; see ``denoiser``
        (moved / data, angle),
        (cos * sin * speed / data, angle.cos() * angle.sin()),
    )
    return turned, -(cos**2) * (data * turned - speed) - warmup * (cos * sin * moved + data * turning)
