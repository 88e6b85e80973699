"""The way from data to noise and back (Ho et al. 2020, Song et al. 2021, Lu et al. 2022), by diffusers' schedulers.

The network predicts z_0 itself. Steps count from 0 (hardly any noise) to T - 1 (hardly anything else).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from models.dismix.config import Diffusion

Denoiser = Callable[[Tensor, Tensor], Tensor]  # z_t and its level (B,) -> z_0


class Noise:
    """How much noise there is at each step, how it is added, and how it is taken away."""

    def __init__(self, section: Diffusion) -> None:
        self.section = section
        self._common: dict[str, Any] = {
            "num_train_timesteps": section.steps,
            "beta_start": section.beta_first,
            "beta_end": section.beta_last,
            "beta_schedule": "linear",
            "prediction_type": "sample",
            "timestep_spacing": "trailing",  # the first step of sampling is the last of the schedule: pure noise
        }
        with torch.device("cpu"):
            self._forward = self._scheduler("ddim")
        self._levels = torch.logit(self._forward.alphas_cumprod.double()).float()

    def add(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise, for (B, ...) each and ``step`` int64 (B,)."""
        return self._forward.add_noise(clean, noise, step)

    def level(self, step: Tensor) -> Tensor:
        """log(abar_t / (1 - abar_t)) of steps int64 (B,)."""
        self._levels = self._levels.to(step.device)  # once
        return self._levels[step]

    @torch.no_grad()
    def sample(self, denoise: Denoiser, noise: Tensor, sampler: str | None = None, steps: int | None = None) -> Tensor:
        """Clean latents out of standard normal ``noise`` (B, ...), without any draw of its own.

        Args:
            sampler: "ddim" or "dpm"; None, as for ``steps``: what the config says.
        """
        scheduler = self._scheduler(sampler or self.section.sampler)
        scheduler.set_timesteps(steps or self.section.sampling_steps, device=noise.device)
        latents = noise
        for step in scheduler.timesteps:
            clean = denoise(latents, self.level(step.expand(len(noise))))
            latents = scheduler.step(clean, step, latents).prev_sample
        return latents

    def _scheduler(self, sampler: str) -> Any:
        if sampler == "ddim":
            return DDIMScheduler(**self._common, clip_sample=False)
        return DPMSolverMultistepScheduler(**self._common, algorithm_type="dpmsolver++", solver_order=2)
