"""The reward under training: which of two outputs was preferred.

Shapes: B comparisons, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.cqtml import data as facts
from models.cqtml.config import ModelConfig
from models.cqtml.taste import Taste, preference_loss
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.train_module import Batch
from pipeline.train_module import TrainModule as BaseModule


class TrainModule(BaseModule):
    """``data``: what the songs' manifest says, and how many comparisons there are; UserError where they are too few."""

    headline = ("loss", "pair_accuracy")

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        if problems := config.model.data_problems(data):
            raise UserError(problems[0])
        self.taste = Taste(config.model.reward_model, data)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def example_batch(self, batch_size: int) -> Batch:
        return facts.comparisons(self.data, batch_size, self.config.seed)

    def compiled(self) -> Iterator[nn.Module]:
        return self.recomputed()

    def recomputed(self) -> Iterator[nn.Module]:
        yield from (self.taste.music, self.taste.lights)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Bradley-Terry's loss, and the share of comparisons that were told rightly."""
        first, second = self.rewards(batch)
        return {
            "loss": preference_loss(first, second, batch["choice"]).mean(),
            "pair_accuracy": told(first, second, batch["choice"]).mean(),
        }

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.training_step(batch, step)

    def rewards(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of both sides, (B,) each."""
        both = torch.stack([batch["a"].float(), batch["b"].float()], 1)
        first, second = self.taste(batch["cqt"], both).unbind(1)
        return first, second

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """A picture of one comparison: both sides, their rewards, and what was chosen."""
        from models.cqtml.reward.showing import show_pair

        show_pair(self, batch, folder, step)


def told(first: Tensor, second: Tensor, choice: Tensor) -> Tensor:
    """(B,) each -> 1 where the higher reward is the one that most preferred, 0 where it is not; a tie of the raters counts half."""
    right = ((first > second) == (choice > 0.5)).float()
    return torch.where(choice == 0.5, torch.full_like(right, 0.5), right)
