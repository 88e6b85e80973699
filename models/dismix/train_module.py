"""DisMix under training: which terms are minimised on a batch, with keyed randomness, and what is shown of it.

Shapes: B mixtures, N sources of each, Q query clips of each source, C mel bands, T frames, P pitch classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.dismix.config import ModelConfig
from models.dismix.losses import barlow_twins_diagonal, gaussian_error, kl_to_prior, pitch_error
from models.dismix.model import DisMix, Latents
from pipeline.collectives import grouped, world_size
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.train_module import Batch
from pipeline.train_module import TrainModule as BaseModule


class TrainModule(BaseModule):
    """The simple case (Section 4). ``data`` names instruments and pitches, and says how mels are standardised."""

    headline = ("loss", "transcription_accuracy")

    mean: Tensor
    std: Tensor

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        if config.model.case == "ldm":
            raise UserError("DisMix's LDM case has sizes but not yet modules: it can be launched with --dry-run only.")
        self.model_config = config.model
        self.pitch_low, self.pitches = int(data["pitch_low"]), int(data["pitch_high"]) - int(data["pitch_low"]) + 1
        self.model = DisMix(config.model, mel_bands=int(data["mel"]["bands"]), pitches=self.pitches)
        # Facts of the data, not weights: they come with the manifest, not with a checkpoint.
        self.register_buffer("mean", torch.tensor(float(data["mean"])), persistent=False)
        self.register_buffer("std", torch.tensor(float(data["std"])), persistent=False)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        """Of ``cocochorales_simple`` and its demo."""
        demo = config.data.recipe.endswith("_demo")
        strings, winds = (
            ["violin", "viola", "cello", "double bass"],
            ["flute", "oboe", "clarinet", "bassoon", "saxophone"],
        )
        brass = ["trumpet", "french horn", "trombone", "tuba"]
        return {
            "instruments": ["violin", "flute", "clarinet", "trumpet"] if demo else [*strings, *winds, *brass],
            "pitch_low": 48 if demo else 33,
            "pitch_high": 72 if demo else 84,
            "sources": 2,
            "queries": 2,
            "frames": 10,
            "seconds": 0.32,
            "sample_rate": 16000,
            "mel": {
                "bands": 128, "window": 1024, "hop": 512, "f_min": 0.0, "f_max": 8000.0, "floor": 1e-5,
                "compression": "natural logarithm",
            },
            "mean": -5.4,
            "std": 2.2,
        }  # fmt: skip

    def standardise(self, mel: Tensor) -> Tensor:
        """Log-mel -> zero mean, unit variance over the training set; any shape."""
        return (mel - self.mean) / self.std

    def log_mel(self, standardised: Tensor) -> Tensor:
        """The inverse of ``standardise``."""
        return standardised * self.std + self.mean

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """-L_DisMix of Eq. (8), and its terms; a mean over the batch."""
        mixture, sources = self.standardise(batch["mixture"]), self.standardise(batch["sources"])
        latents = self.model.encode(mixture, self._queries(batch), *self._draws(batch))
        terms = self._terms(latents, mixture, sources, batch["pitch"])
        if self.model_config.barlow_twins:
            terms["barlow_twins"] = self._barlow_twins(latents)
        return self._logged(terms, latents, batch, self._progress(step))

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The terms at threshold 0.5 and the posterior's mean; without Barlow Twins, which is no mean over samples."""
        mixture, sources = self.standardise(batch["mixture"]), self.standardise(batch["sources"])
        latents = self.model.encode(mixture, self.standardise(batch["queries"][:, :, 0]))
        return self._logged(self._terms(latents, mixture, sources, batch["pitch"]), latents, batch)

    def _queries(self, batch: Batch) -> Tensor:
        """One of each source's Q clips, drawn by position: (B, N, Q, C, T) -> (B, N, C, T) standardised."""
        queries = batch["queries"]
        samples, sources, clips = queries.shape[:3]
        draw = self.random.uniform("dismix/query", batch["position"], (sources,), queries.device)
        choice = (draw * clips).long().clamp_max(clips - 1)
        rows = torch.arange(samples, device=queries.device)[:, None]
        return self.standardise(queries[rows, torch.arange(sources, device=queries.device), choice])

    def _draws(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Thresholds (B, N, P) of the binarisation and noise (B, N, D) of the timbre draw, keyed by position."""
        position, sources, device = batch["position"], batch["pitch"].shape[1], batch["mixture"].device
        threshold = self.random.uniform("dismix/threshold", position, (sources, self.pitches), device)
        noise = self.random.normal("dismix/timbre", position, (sources, self.model_config.simple.latent), device)
        return threshold, noise

    def _terms(self, latents: Latents, mixture: Tensor, sources: Tensor, pitch: Tensor) -> dict[str, Tensor]:
        """Every term that is a mean over samples, unweighted."""
        config, frames = self.model_config, mixture.shape[-1]
        source_latents = self.model.film(latents.timbre, latents.pitch)
        total = source_latents.sum(1, keepdim=True)
        # e_m renders the mixture and each s its source (Section 4); Eq. (6) itself would have the sum render the mixture.
        rendered_from = [latents.mixture_embedding[:, None], source_latents]
        if config.mixture_from_sources:
            rendered_from.append(total)
        rendered = self.model.decode(torch.cat(rendered_from, dim=1), frames)  # one pass of the decoder for all of them
        terms = {
            "reconstruction_mixture": gaussian_error(mixture, rendered[:, 0], config.sigma),
            "reconstruction_sources": gaussian_error(sources, rendered[:, 1 : 1 + sources.shape[1]], config.sigma),
            "embedding": gaussian_error(latents.mixture_embedding, total[:, 0], config.sigma_mixture),
            "kl": kl_to_prior(latents.timbre_mean, latents.timbre_log_variance),
            "bce": pitch_error(latents.pitch_logits, pitch - self.pitch_low),
        }
        if config.mixture_from_sources:
            terms["mixture_from_sources"] = gaussian_error(mixture, rendered[:, -1], config.sigma)
        return terms

    def _barlow_twins(self, latents: Latents) -> Tensor:
        share = self.config.data.batch_size // world_size()
        pair = torch.stack([latents.query_embedding, latents.timbre], dim=1).float()  # one gather for both
        groups = grouped(pair, self.model_config.barlow_twins_group, share, "model.barlow_twins_group")
        return barlow_twins_diagonal(groups[:, :, 0], groups[:, :, 1])

    def _progress(self, step: int) -> float:
        """The curriculum's factor on every term but the BCE: ``curriculum_start`` at step 0, 1 from its end on."""
        config = self.model_config
        left = max(0.0, 1 - step / config.curriculum_steps) if config.curriculum_steps else 0.0
        return config.curriculum_start**left

    def _logged(
        self, terms: dict[str, Tensor], latents: Latents, batch: Batch, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """``loss`` from the weighted terms, the terms, and how many sources were transcribed rightly."""
        config = self.model_config
        weights = {
            "reconstruction_mixture": config.reconstruction * progress,
            "reconstruction_sources": config.reconstruction * progress,
            "mixture_from_sources": config.mixture_from_sources * progress,
            "embedding": config.embedding * progress,
            "kl": config.kl * progress,
            "bce": config.bce,
            "barlow_twins": config.barlow_twins * progress,
        }
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        right = latents.pitch_logits.argmax(-1) == batch["pitch"] - self.pitch_low
        return {"loss": loss, **terms, "transcription_accuracy": right.float().mean()}

    def example_batch(self, batch_size: int) -> Batch:
        """Random mels, pitches and instruments in the shapes of the recipe."""
        data = self.data
        sources, queries, mel = int(data["sources"]), int(data["queries"]), data["mel"]
        generator = torch.Generator().manual_seed(self.config.seed)
        shape = (int(mel["bands"]), int(data["frames"]))

        def spectrograms(*leading: int) -> Tensor:
            return torch.randn(*leading, *shape, generator=generator) * float(data["std"]) + float(data["mean"])

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (batch_size, sources), generator=generator)

        return {
            "mixture": spectrograms(batch_size),
            "sources": spectrograms(batch_size, sources),
            "queries": spectrograms(batch_size, sources, queries),
            "pitch": integers(int(data["pitch_low"]), int(data["pitch_high"]) + 1),
            "instrument": integers(0, len(data["instruments"])),
            "position": torch.arange(batch_size),
        }

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """A picture and the audio of the first mixture with the pitches of two sources swapped."""
        from models.dismix.showing import show_swap

        show_swap(self, batch, folder, step)
