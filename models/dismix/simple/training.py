"""The simple case under training: which terms are minimised on a batch, with keyed randomness, and what is shown of it.

Shapes: B mixtures, N sources of each, Q query clips of each source, C mel bands, T frames, P pitch classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.dismix.losses import barlow_twins_diagonal, gaussian_error, kl_to_prior, pitch_error
from models.dismix.simple.model import DisMix, Latents
from models.dismix.train_module import TrainModule
from models.dismix.typical import common
from pipeline.config import RunConfig
from pipeline.train_module import Batch


class SimpleModule(TrainModule):
    """Mel in and mel out (Section 4)."""

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        self.pitch_low, self.pitches = int(data["pitch_low"]), int(data["pitch_high"]) - int(data["pitch_low"]) + 1
        self.model = DisMix(self.model_config, mel_bands=int(data["mel"]["bands"]), pitches=self.pitches)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        """Of ``cocochorales_simple`` and its demo."""
        demo = config.data.recipe.endswith("_demo")
        pitches = {"pitch_low": 48, "pitch_high": 72} if demo else {"pitch_low": 33, "pitch_high": 84}
        return common(config, bands=128, hop=512, frames=10) | pitches | {"sources": 2, "queries": 2}

    def compiled(self) -> Iterator[nn.Module]:
        """What encodes. The decoder is a GRU, and a recurrence is one kernel already."""
        model = self.model
        yield from (
            model.mixture_encoder,
            model.query_encoder,
            model.transcriber,
            model.translator,
            model.timbre_encoder,
        )

    def recomputed(self) -> Iterator[nn.Module]:
        yield from (self.model.mixture_encoder, self.model.query_encoder, self.model.decoder)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """-L_DisMix of Eq. (8), and its terms; a mean over the batch."""
        mixture, sources = self.standardise(batch["mixture"]), self.standardise(batch["sources"])
        latents = self.model.encode(mixture, self._queries(batch), *self._draws(batch))
        terms = self._terms(latents, mixture, sources, batch["pitch"])
        if self.model_config.barlow_twins:
            terms["barlow_twins"] = barlow_twins_diagonal(*self._groups(latents.query_embedding, latents.timbre))
        return self._logged(terms, latents, batch, self._progress(step))

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The terms at threshold 0.5 and the posterior's mean; without Barlow Twins, which is no mean over samples."""
        mixture, sources = self.standardise(batch["mixture"]), self.standardise(batch["sources"])
        latents = self.model.encode(mixture, self.standardise(batch["queries"][:, :, 0]))
        return self._logged(self._terms(latents, mixture, sources, batch["pitch"]), latents, batch)

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

    def _logged(
        self, terms: dict[str, Tensor], latents: Latents, batch: Batch, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """``loss`` from the weighted terms, the terms, and how many sources were transcribed rightly."""
        right = latents.pitch_logits.argmax(-1) == batch["pitch"] - self.pitch_low
        return {"loss": self._weighted(terms, progress), **terms, "transcription_accuracy": right.float().mean()}

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
        from models.dismix.simple.showing import show_swap

        show_swap(self, batch, folder, step)
