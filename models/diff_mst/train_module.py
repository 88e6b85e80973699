"""Diff-MST under training: tracks in, settings out, a console between them and the loss.

Shapes: B samples, N tracks, n samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks.console.console import Console, Rendered
from models.blocks.console.settings import Settings
from models.diff_mst import data as facts
from models.diff_mst.config import ModelConfig
from models.diff_mst.networks import MixingEngineer
from models.diff_mst.objectives import distances, weighted
from models.diff_mst.pretrained import begin_with
from pipeline.config import RunConfig
from pipeline.train_module import Batch
from pipeline.train_module import TrainModule as BaseModule


class Mixing(nn.Module):
    """The console as a part of a step: it has no weights, and most of a step's activations."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def forward(self, tracks: Tensor, settings: Settings) -> Rendered:
        return self.console(tracks, settings)


class TrainModule(BaseModule):
    headline = ("loss",)

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        self.model_config = config.model
        facts.check_data(config, config.model, data)
        self.sample_rate = int(data["sample_rate"])
        self.layout = config.model.console.layout(self.sample_rate)
        self.console = Console(self.layout)
        self.mixing = Mixing(self.console)
        self.model = MixingEngineer(config.model, self.layout)

    def load_pretrained(self) -> dict[str, str]:
        name = self.model_config.encoder.pretrained
        return {} if name is None else begin_with(self.model, name)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def example_batch(self, batch_size: int) -> Batch:
        return facts.example_batch(self.config, self.data, batch_size)

    def compiled(self) -> Iterator[nn.Module]:
        """What listens and what decides. The console is transforms and complex numbers, which the compiler does not know."""
        yield from self.model.blocks()
        yield from self.model.transformer.layers

    def view(self, batch: Batch, stream: str | None = None) -> facts.View:
        """What of a batch goes where; ``stream`` names the draws of training's crops."""
        return facts.view(batch, self.model_config, self.layout, self.random, stream)

    def mixed(self, seen: facts.View) -> tuple[Rendered, Settings]:
        """The mix of what is seen, and the settings that made it."""
        settings = self.model.settings(seen.heard, seen.reference)
        rendered: Rendered = self.mixing(seen.tracks, settings)
        return rendered, settings

    def recomputed(self) -> Iterator[nn.Module]:
        yield from self.model.blocks()
        yield self.mixing

    def judged(self, wave: Tensor) -> Tensor:
        """(B, C, n) without the lead-in, in which reverb and compressor cannot know what came before."""
        return wave[..., round(self.model_config.lead_in * self.sample_rate) :]

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The weighted distances to what is wanted, and each of them; means over the batch."""
        return self._step(self.view(batch, "train"))

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The same on whole segments."""
        return self._step(self.view(batch))

    def _step(self, seen: facts.View) -> dict[str, Tensor]:
        mix = self.judged(self.mixed(seen)[0].mix)
        found = distances(mix, self.judged(seen.like), self.sample_rate, self.model_config.weights)
        loss = weighted(found, self.model_config.weights)
        return {name: (value * seen.counts).mean() for name, value in {"loss": loss, **found}.items()}

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """The first sample before and after as audio and pictures, with the settings as a table."""
        from models.diff_mst.showing import show_progress

        show_progress(self, batch, folder, step)
