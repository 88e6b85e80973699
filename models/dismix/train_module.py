"""DisMix under training: what its two cases share. ``model.case`` decides which of them a TrainModule is.

Shapes: B mixtures, N sources of each, Q query clips of each source, C mel bands, T frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.dismix.config import ModelConfig
from pipeline.collectives import grouped, world_size
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.train_module import Batch
from pipeline.train_module import TrainModule as BaseModule


class TrainModule(BaseModule):
    """Of either case. ``data`` names instruments and pitches, and says how mels are standardised."""

    headline = ("loss", "transcription_accuracy")

    mean: Tensor
    std: Tensor

    def __new__(cls, config: RunConfig, data: dict[str, Any]) -> TrainModule:
        """Of the case that the config names: whoever builds a DisMix need not know that there are two."""
        return super().__new__(_case(config) if cls is TrainModule else cls)

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        self.model_config = config.model
        # Facts of the data, not weights: they come with the manifest, not with a checkpoint.
        self.register_buffer("mean", torch.tensor(float(data["mean"])), persistent=False)
        self.register_buffer("std", torch.tensor(float(data["std"])), persistent=False)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return _case(config).typical_data(config)

    def standardise(self, mel: Tensor) -> Tensor:
        """Log-mel -> zero mean, unit variance over the training set; any shape."""
        return (mel - self.mean) / self.std

    def log_mel(self, standardised: Tensor) -> Tensor:
        """The inverse of ``standardise``."""
        return standardised * self.std + self.mean

    def _queries(self, batch: Batch) -> Tensor:
        """One of each source's Q clips, drawn by position: (B, N, Q, C, T) -> (B, N, C, T) standardised."""
        queries = batch["queries"]
        samples, sources, clips = queries.shape[:3]
        draw = self.random.uniform("dismix/query", batch["position"], (sources,), queries.device)
        choice = (draw * clips).long().clamp_max(clips - 1)
        rows = torch.arange(samples, device=queries.device)[:, None]
        return self.standardise(queries[rows, torch.arange(sources, device=queries.device), choice])

    def _groups(self, query: Tensor, timbre: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) each -> (G, S, N, D) each, the groups that the config fixes: what Eq. (7) correlates over."""
        share = self.config.data.batch_size // world_size()
        pair = torch.stack([query, timbre], dim=1).float()  # one gather for both
        groups = grouped(pair, self.model_config.barlow_twins_group, share, "model.barlow_twins_group")
        return groups[:, :, 0], groups[:, :, 1]

    def _progress(self, step: int) -> float:
        """The curriculum's factor on every term but the BCE: ``curriculum_start`` at step 0, 1 from its end on."""
        config = self.model_config
        left = max(0.0, 1 - step / config.curriculum_steps) if config.curriculum_steps else 0.0
        return config.curriculum_start**left

    def _weighted(self, terms: dict[str, Tensor], progress: float) -> Tensor:
        """-L_DisMix of Eq. (8) from its terms."""
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
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def _case(config: RunConfig) -> type[TrainModule]:
    """The class of the config's case, imported late: the simple case does without diffusers."""
    assert isinstance(config.model, ModelConfig)
    if config.model.case == "ldm":
        try:
            from models.dismix.ldm.training import LdmModule
        except ModuleNotFoundError as error:
            raise UserError(f"DisMix's LDM case needs the package {error.name}; type: make setup") from error
        return LdmModule
    from models.dismix.simple.training import SimpleModule

    return SimpleModule
