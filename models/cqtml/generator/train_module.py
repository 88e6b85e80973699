"""The generator under training: lights are taught what music offers, band onsets and the beat; with MusicNet's labels, its notes.

Shapes: B segments, T frames, C columns, K levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.precision import full_precision
from models.codecs.weights import weights_root
from models.cqtml import data as facts
from models.cqtml.brightness import expected, most_likely, to_columns, to_frames
from models.cqtml.config import Head, ModelConfig
from models.cqtml.generator.augment import varied
from models.cqtml.judge import judged_by_ear
from models.cqtml.music import taught
from models.cqtml.network import Generator
from models.cqtml.optimizer import eight_bit_adamw
from models.cqtml.vit import VisionTransformer
from pipeline.config import RunConfig
from pipeline.train_module import Batch
from pipeline.train_module import TrainModule as BaseModule


class TrainModule(BaseModule):
    """``data``: the CQT's mean and deviation for each bin."""

    headline = ("loss", "held_out_judge")

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        self.model_config = config.model
        self.generator = Generator(config.model, data)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def example_batch(self, batch_size: int) -> Batch:
        return facts.music(self.data, batch_size, self.config.seed)

    def load_pretrained(self) -> dict[str, str]:
        if not self.model_config.body.pretrained:
            return {}
        assert isinstance(self.generator.body, VisionTransformer)
        return self.generator.body.load_pretrained(weights_root())

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.model_config.body.eight_bit:
            return {"main": eight_bit_adamw(self.parameters(), self.config.optimizer)}
        return super().configure_optimizers()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Divergence of what is said from what is taught, in nats a light and column."""
        if "notes" not in batch:  # labels stay where they are
            cqt = varied(batch["cqt"], self.model_config.augment, self.random, batch["position"])
            batch = {**batch, "cqt": cqt}
        return {"loss": imitation(self.generator(batch["cqt"]), self._target(batch), self.model_config)}

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss, the error of the mean brightness, and what the held-out judge says of the deterministic output."""
        logits, target = self.generator(batch["cqt"]), self._target(batch)
        lights = to_frames(most_likely(logits, self.model_config.head), batch["cqt"].shape[-1])
        return {
            "loss": imitation(logits, target, self.model_config),
            "brightness_error": (expected(logits, self.model_config.head) - target).abs().mean(),
            "held_out_judge": judged_by_ear(lights[:, None], batch).mean(),
        }

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """A picture of the lights beside what they were taught, and the music."""
        from models.cqtml.showing import show_training

        show_training(self.generator, self.model_config, batch, folder, step)

    def _target(self, batch: Batch) -> Tensor:
        """Brightness (B, 4, C)."""
        notes = (batch["notes"], batch["note_count"]) if "notes" in batch else None
        return to_columns(taught(batch["cqt"], self.model_config.warm_start.release, notes))


@full_precision
def imitation(logits: Tensor, target: Tensor, config: ModelConfig) -> Tensor:
    """KL(target || network), mean over (B, 4, C): the target is a bell over neighbouring levels, or the brightness as a coin's."""
    if config.head.name == "levels":
        wanted = _bell(target, config.head, config.warm_start.spread)
        return (torch.xlogy(wanted, wanted) - wanted * logits.float().log_softmax(2)).sum(2).mean()
    location, wanted = logits[:, :, 0].float(), target.clamp(0, 1)
    entropy = -torch.xlogy(wanted, wanted) - torch.xlogy(1 - wanted, 1 - wanted)
    return (F.binary_cross_entropy_with_logits(location, wanted, reduction="none") - entropy).mean()


def _bell(brightness: Tensor, head: Head, spread: float) -> Tensor:
    """(B, 4, C) -> probabilities (B, 4, K, C) around the brightness; without spread the two nearest levels share by distance."""
    place = brightness.clamp(0, 1)[:, :, None] * (head.levels - 1)
    away = place - torch.arange(head.levels, device=place.device)[:, None]
    weight = (-0.5 * (away / spread).square()).exp() if spread else (1 - away.abs()).clamp_min(0)
    return weight / weight.sum(2, keepdim=True)
