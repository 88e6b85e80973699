"""CD4MT under training: what is minimised on a batch, with keyed randomness, and what is shown of it.

Shapes: B samples, S stems, C latent channels, L frames.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.cd4mt import data as facts
from models.cd4mt import sampling
from models.cd4mt.config import ModelConfig
from models.cd4mt.coupling import coupled
from models.cd4mt.denoiser import Denoiser
from models.cd4mt.objectives import LAST, objective
from models.cd4mt.sampling import Known
from models.cd4mt.schedules import cm_teacher_decay, karras_sigmas
from models.codecs.standardisation import Standardisation
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch, Engine
from pipeline.train_module import TrainModule as BaseModule

HALF = 1.0  # of sigma_data: where as much is noise as is music, ``denoising_error`` is measured


class TrainModule(BaseModule):
    """Latents of four stems, and a denoiser; CM has a second one, the average that teaches it."""

    headline = ("loss", "denoising_error")

    latent_mean: Tensor  # (S, C, 1)
    latent_std: Tensor

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        self.model_config = config.model
        facts.check_data(config, self.model_config, data)
        self.stems = facts.stems(data)
        self.denoiser = Denoiser(self.model_config, *facts.latent_shape(data)[:2])
        self.teacher: Denoiser | None = None
        if self.model_config.objective == "cm":
            if config.trainer.strategy == "deepspeed":
                raise UserError(
                    "CM's teacher is an average of whole weights, and ZeRO shares them: set trainer.strategy=ddp."
                )
            self.teacher = copy.deepcopy(self.denoiser).requires_grad_(False)
        scale = facts.standardisation(data, self.model_config)
        # Facts of the data, not weights: they come with the manifest, not with a checkpoint.
        self.register_buffer("latent_mean", scale.mean, persistent=False)
        self.register_buffer("latent_std", scale.std, persistent=False)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def example_batch(self, batch_size: int) -> Batch:
        return facts.example_batch(self.data, batch_size, self.config.seed)

    def before_the_batch(self) -> list[str]:
        return facts.way_to_latents(self.data)

    def compiled(self) -> Iterator[nn.Module]:
        """The U-Nets. Not under sCM, which takes a derivative along a direction: the compiler knows only those backwards."""
        if self.model_config.objective != "scm":
            yield from (network.network for network in (self.denoiser, self.teacher) if network is not None)

    def recomputed(self) -> Iterator[nn.Module]:
        return self.denoiser.network.stages()

    def clean(self, batch: Batch) -> Tensor:
        """A batch's latents (B, S, C, L), of deviation sigma_data."""
        return self.scale.apply(facts.arranged(batch[facts.FIELD].to(self.latent_mean.device)))

    @property
    def scale(self) -> Standardisation:
        """Between latents as stored and latents of deviation sigma_data."""
        return Standardisation(self.latent_mean, self.latent_std)

    @property
    def frames(self) -> int:
        """Of what the network was trained on."""
        return self.model_config.frames or facts.frames(self.data)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The objective, a mean over the batch."""
        clean, noise, draw = self._seen(batch, "train")
        if self.model_config.coupling_group is not None:
            noise = coupled(clean, noise, self.model_config.coupling_group)
        teacher = self.teacher or self.denoiser
        each = objective(self.model_config, self.denoiser, teacher, clean, noise, draw, step)
        return {"loss": each.mean()}

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The objective as its schedule ends, so that checkpoints compare; and the share of the variance that is missed where as much is
        noise as is music (``denoising_error``: 1 knows only the mean)."""
        clean, noise, draw = self._seen(batch, "valid")
        loss = objective(self.model_config, self.denoiser, self.denoiser, clean, noise, draw, LAST)
        data = self.model_config.sigma_data
        sigma = torch.full((len(clean),), HALF * data, device=clean.device)
        error = (self.denoiser(clean + HALF * data * noise, sigma) - clean).square().mean()
        return {"loss": loss.mean(), "denoising_error": error / data**2}

    def _seen(self, batch: Batch, stream: str) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, S, C, L) of deviation sigma_data, noise of the same shape, and U(0, 1) (B,), keyed by position."""
        position = batch["position"]
        clean = facts.crop(self.clean(batch), self.model_config.frames, self.random, stream, position)
        noise = self.random.normal(f"cd4mt/{stream}/noise", position, clean.shape[1:], clean.device)
        return clean, noise, self.random.uniform(f"cd4mt/{stream}/level", position, (), clean.device)

    def optimize(
        self, engine: Engine, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], step: int
    ) -> dict[str, Tensor]:
        logged = super().optimize(engine, batch, optimizers, step)
        if self.teacher is not None:  # theta^- <- mu theta^- + (1 - mu) theta (2303.01469, Section 4)
            decay = cm_teacher_decay(step - 1, self.model_config.cm)
            with torch.no_grad():
                for average, weight in zip(self.teacher.parameters(), self.denoiser.parameters(), strict=True):
                    average.lerp_(weight, 1 - decay)
        return logged

    def start_from(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """From a run of the same network and any objective; CM's teacher begins as its student."""
        prefix = "denoiser."
        network = {k.removeprefix(prefix): v for k, v in weights["init_from"].items() if k.startswith(prefix)}
        self.denoiser.load_state_dict(network)
        if self.teacher is not None:
            self.teacher.load_state_dict(network)

    def draw(
        self, numbers: Tensor, frames: int, steps: int | None = None, known: Known | None = None, seed: int = 0
    ) -> Tensor:
        """Latents (B, S, C, ``frames``) of deviation sigma_data: sample i is that of ``numbers[i]`` under ``seed``.

        Args:
            steps: of Heun's method for a run of diffusion (default 35), else noise levels of a consistency model (default 2).
        """
        device = self.latent_mean.device
        shape = (len(self.stems), self.latent_mean.shape[1], frames)
        random = KeyedRandom(seed)
        config = self.model_config
        if config.objective == "edm":
            sigmas = karras_sigmas(steps or sampling.DIFFUSION_STEPS, config.sigma_min, config.sigma_max, config.rho)
            noise = random.normal("cd4mt/sample/0", numbers, shape, device)
            return sampling.heun(self.denoiser, noise, sigmas.tolist(), known)
        asked = sampling.levels(config, steps or 2)
        noises = [random.normal(f"cd4mt/sample/{i}", numbers, shape, device) for i in range(len(asked))]
        return sampling.consistency(self.denoiser, noises, asked, known)

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """Pictures and audio of one draw beside one sample of the data."""
        from models.cd4mt.showing import show_draw

        show_draw(self, batch, folder, step)
