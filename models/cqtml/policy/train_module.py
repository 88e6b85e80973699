"""The policy under training: the generator tuned to what a reward learned, by GRPO, and an alarm for where it only exploits that.

Beside the generator that learns there are three frozen networks: the ``start``, from which the divergence is measured; the one that is
``drawing``, which lags behind by ``grpo.refresh`` steps at most; and the reward. All are part of the module's state, so a run goes on
without other folders.

Shapes: B segments, S outputs of each, 4 lights, C columns, T frames, K levels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.cqtml import data as facts
from models.cqtml.brightness import divergence, draw, log_probability, to_frames, to_levels
from models.cqtml.config import LIGHTS, ModelConfig
from models.cqtml.grpo import clipped_objective, diversity, group_advantage
from models.cqtml.judge import judged_by_ear
from models.cqtml.network import Generator
from models.cqtml.taste import Taste
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.train_module import Batch, Engine
from pipeline.train_module import TrainModule as BaseModule


class TrainModule(BaseModule):
    """``data``: that of the songs it is tuned on."""

    headline = ("loss", "held_out_win_rate", "reward_hacking")

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        if config.trainer.strategy == "deepspeed":
            raise UserError(
                "a policy keeps whole copies of its weights, and ZeRO shares them: set trainer.strategy=ddp."
            )
        self.model_config = config.model
        self.generator = Generator(config.model, data)
        self.start = copy.deepcopy(self.generator).requires_grad_(False)
        self.drawing = copy.deepcopy(self.generator).requires_grad_(False)
        self.taste = Taste(config.model.reward_model, data).requires_grad_(False)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def example_batch(self, batch_size: int) -> Batch:
        return facts.music(self.data, batch_size, self.config.seed)

    def train(self, mode: bool = True) -> TrainModule:
        super().train(mode)
        for frozen in (self.start, self.drawing, self.taste):
            frozen.eval()
        return self

    def start_from(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """ "init_from": a generator or an earlier policy; "reward": a reward. KeyError where either is missing."""
        taught = _part(weights["init_from"], "generator.")
        for network in (self.generator, self.start, self.drawing):
            network.load_state_dict(taught)
        self.taste.load_state_dict(_part(weights["reward"], "taste."))

    def compiled(self) -> Iterator[nn.Module]:
        for network in (self.generator, self.start, self.drawing):
            yield from network.compiled()
        yield from (self.taste.music, self.taste.lights)

    def recomputed(self) -> Iterator[nn.Module]:
        return self.generator.blocks()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """What is minimised, and what it is made of; outputs are drawn by position, with the network that draws.

        ``loss`` has the gradient of GRPO's objective, and as its value what that ascends: the divergence, weighed, minus the rise of the
        reward over the start's outputs of the same draws. (The objective's own value is near 0 whatever is learned.)
        """
        grpo = self.model_config.grpo
        with torch.no_grad():
            old, begun = self.drawing(batch["cqt"]), self.start(batch["cqt"])
            lights = self._draw(old, batch, "train")
            both = self._rewards(batch, torch.cat([lights, self._draw(begun, batch, "train")], 1))
            rewards, before = both.chunk(2, 1)
            levels = to_levels(lights, self.model_config.head.levels)
            drawn = log_probability(old, levels, grpo.temperature)
        logits = self.generator(batch["cqt"])
        now = log_probability(logits, levels, grpo.temperature)
        objective, clipped = clipped_objective(now, drawn, group_advantage(rewards), grpo.clip)
        kl, gain = divergence(logits, begun, grpo.temperature).mean(), (rewards - before).mean()
        return {
            "loss": grpo.kl * kl - gain - (objective - objective.detach()),
            "reward_gain": gain,
            "kl": kl.detach(),
            "clipped": clipped,
            "diversity": diversity(lights).mean(),
        }

    def optimize(
        self, engine: Engine, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], step: int
    ) -> dict[str, Tensor]:
        if (step - 1) % self.model_config.grpo.refresh == 0:
            self.drawing.load_state_dict(self.generator.state_dict())
        return super().optimize(engine, batch, optimizers, step)

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Against the start, with the same draws: how far rewards have risen, what the held-out judge says, and whether that is an alarm.

        ``loss`` is the objective's own sum: the divergence, weighed, minus the gain in reward.
        """
        grpo = self.model_config.grpo
        logits, begun = self.generator(batch["cqt"]), self.start(batch["cqt"])
        now, before = (self._draw(each, batch, "valid") for each in (logits, begun))
        gain = self._rewards(batch, now) - self._rewards(batch, before)
        better = judged_by_ear(self._frames(now, batch), batch) - judged_by_ear(self._frames(before, batch), batch)
        kl, kept = divergence(logits, begun, grpo.temperature).mean(), diversity(now).mean() / diversity(before).mean()
        wins = (better > 0).float().mean() + 0.5 * (better == 0).float().mean()
        return {
            "loss": grpo.kl * kl - gain.mean(),
            "reward_gain": gain.mean(),
            "held_out_gain": better.mean(),
            "held_out_win_rate": wins,
            "kl": kl,
            "diversity_kept": kept,
            "reward_hacking": self.alarm(gain.mean(), wins, kl, kept).float(),
        }

    def alarm(self, gain: Tensor, wins: Tensor, kl: Tensor, kept: Tensor) -> Tensor:
        """Whether the reward is exploited: it rises, and the judge that nobody trains on, the divergence or the diversity say otherwise."""
        grpo = self.model_config.grpo
        return (gain > 0) & ((wins < 0.5) | (kl > grpo.kl_alarm) | (kept < grpo.diversity_alarm))

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """A picture of the lights beside those of the start."""
        from models.cqtml.policy.showing import show_tuning

        show_tuning(self, batch, folder, f"CQTML's policy after {step} steps")

    def _draw(self, logits: Tensor, batch: Batch, stream: str) -> Tensor:
        """(B, 4, K, C) -> brightness (B, S, 4, C), keyed by position."""
        grpo, head = self.model_config.grpo, self.model_config.head
        shape = (grpo.group, LIGHTS, head.levels, logits.shape[-1])
        uniform = self.random.uniform(f"cqtml/policy/{stream}", batch["position"], shape, logits.device)
        return draw(logits, uniform, grpo.temperature, head)

    def _rewards(self, batch: Batch, lights: Tensor) -> Tensor:
        """(B, S, 4, C) -> (B, S)."""
        return self.taste(batch["cqt"], self._frames(lights, batch)).float()

    @staticmethod
    def _frames(lights: Tensor, batch: Batch) -> Tensor:
        return to_frames(lights, batch["cqt"].shape[-1])


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below ``prefix``; KeyError where there are none: it is a run of another kind."""
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if not found:
        raise KeyError(f"a run with {prefix.rstrip('.')}")
    return found
