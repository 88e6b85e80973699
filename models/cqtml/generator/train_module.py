"""The generator under training: lights are taught what music offers, band onsets and the beat; with MusicNet's labels, its notes.

Shapes: B segments, T frames, C columns, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.precision import full_precision
from models.codecs.weights import weights_root
from models.cqtml import data as facts
from models.cqtml.brightness import expected, most_likely, to_columns, to_frames
from models.cqtml.config import FRAME_RATE, Head, ModelConfig
from models.cqtml.generator.augment import spliced, varied
from models.cqtml.judge import judged_by_ear
from models.cqtml.music import taught
from models.cqtml.network import Generator
from models.cqtml.optimizer import eight_bit_adamw
from models.cqtml.vit import PATCH, VisionTransformer
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.train_module import Batch
from pipeline.train_module import TrainModule as BaseModule

FALLEN = 3.0  # releases after which a light has forgotten an onset: to 5 %


class TrainModule(BaseModule):
    """``data``: the CQT's mean and deviation for each bin."""

    headline = ("loss", "held_out_judge")

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        self.model_config = config.model
        if config.model.warm_start.locality and not config.data.partner:
            raise UserError(
                "model.warm_start.locality splices other songs in: set data.partner=true as well, or the weight to 0."
            )
        self.generator = Generator(config.model, data)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def example_batch(self, batch_size: int) -> Batch:
        batch = facts.music(self.data, batch_size, self.config.seed)
        if self.config.data.partner:
            other = facts.music(self.data, batch_size, self.config.seed + 1)
            batch |= {f"other_{name}": other[name] for name in ("cqt", "audio")}
        return batch

    def load_pretrained(self) -> dict[str, str]:
        if not self.model_config.body.pretrained:
            return {}
        assert isinstance(self.generator.body, VisionTransformer)
        return self.generator.body.load_pretrained(weights_root())

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.model_config.body.eight_bit:
            return {"main": eight_bit_adamw(self.parameters(), self.config.optimizer)}
        return super().configure_optimizers()

    def compiled(self) -> Iterator[nn.Module]:
        return self.generator.compiled()

    def recomputed(self) -> Iterator[nn.Module]:
        return self.generator.blocks()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """``imitation``: divergence of what is said from what is taught, in nats a light and column; ``far_change``: see there.

        ``loss`` is the first and, weighed by ``warm_start.locality``, the second.
        """
        weight, position = self.model_config.warm_start.locality, batch["position"]
        if "notes" not in batch:  # labels stay where they are
            batch = {**batch, "cqt": varied(batch["cqt"], self.model_config.augment, self.random, position)}
        cqt, target = batch["cqt"], self._target(batch)
        if not weight:
            return {"loss": imitation(self.generator(cqt), target, self.model_config)}
        after = math.ceil(FALLEN * self.model_config.warm_start.release * FRAME_RATE / PATCH)
        altered, far = spliced(cqt, batch["other_cqt"], self.random, position, after)
        said, then = self.generator(torch.cat([cqt, altered])).chunk(2)
        lesson, moved = imitation(said, target, self.model_config), far_change(said, then, far, self.model_config.head)
        return {"loss": lesson + weight * moved, "imitation": lesson.detach(), "far_change": moved.detach()}

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


@full_precision
def far_change(said: Tensor, then: Tensor, far: Tensor, head: Head) -> Tensor:
    """How far the mean brightness moves where it should not: logits (B, 4, K, C) of music and of it spliced, columns (B, C) -> scalar.

    Absolute, not squared: a little in every column is what is to go. The mean for each segment, then over segments, so that it is the same
    on any number of ranks; columns near the splice count as unmoved.
    """
    change = (expected(said, head) - expected(then, head)).abs()
    return (change * far[:, None]).mean()


def _bell(brightness: Tensor, head: Head, spread: float) -> Tensor:
    """(B, 4, C) -> probabilities (B, 4, K, C) around the brightness; without spread the two nearest levels share by distance."""
    place = brightness.clamp(0, 1)[:, :, None] * (head.levels - 1)
    away = place - torch.arange(head.levels, device=place.device)[:, None]
    weight = (-0.5 * (away / spread).square()).exp() if spread else (1 - away.abs()).clamp_min(0)
    return weight / weight.sum(2, keepdim=True)
