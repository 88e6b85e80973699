"""The figures of a policy on held-out songs, against the generator that it was tuned from, with 95 % intervals.

The held-out judge hears onsets in the waveform's mel bands; nothing was trained on what it says. ``win_rate_drawn``: share of outputs,
drawn at the training's temperature, that it ranks above the start's output of the same draw; ``win_rate_most_likely``: of the most likely
outputs. ``kl``: divergence from the start, nats a light and column. ``diversity_kept``: deviation over a group of outputs, divided by the
start's.
``reward_gain``: rise of the reward. ``reward_hacking``: 1 where the alarm sounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.cqtml.brightness import divergence, draw, most_likely, to_frames
from models.cqtml.config import LIGHTS
from models.cqtml.grpo import diversity
from models.cqtml.judge import HELD_OUT, heard
from models.cqtml.measuring import held_out, locality, onset_figures
from models.cqtml.policy.showing import show_tuning
from models.cqtml.policy.train_module import TrainModule
from models.metrics import Figure, accuracy, mean
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch


@torch.no_grad()
def evaluate(module: TrainModule, data_folder: Path, out: Path, split: str = "test") -> Mapping[str, Figure | float]:
    """The figures by name; a picture and audio of the first segment go to ``out``. UserError where the split is too small."""
    module.eval()
    found: dict[str, list[Tensor]] = defaultdict(list)
    for number, batch in enumerate(held_out(data_folder, split, module.generator.hearing.mean.device)):
        for name, value in _measured(module, batch).items():
            found[name].append(value.cpu())
        if number == 0:
            show_tuning(module, batch, out, "CQTML's policy, held-out segment 0")
    whole = {name: torch.cat(parts) for name, parts in found.items()}
    lights, onsets = whole.pop("lights"), whole.pop("onsets")
    drawn, most = whole.pop("better_drawn"), whole.pop("better_most_likely")
    kept = whole["diversity"].mean() / whole["start_diversity"].mean()
    wins = accuracy(drawn > 0)
    alarm = module.alarm(whole["reward_gain"].mean(), torch.tensor(wins["value"]), whole["kl"].mean(), kept)
    figures: dict[str, Figure | float] = {"win_rate_drawn": wins, "win_rate_most_likely": accuracy(most > 0)}
    figures |= {name: mean(values) for name, values in whole.items()}
    figures |= {"diversity_kept": float(kept), "reward_hacking": float(alarm)}
    return figures | onset_figures("policy", lights, onsets)


def _measured(module: TrainModule, batch: Batch) -> dict[str, Tensor]:
    """Of every segment: lights (B, 4, T), onsets (B, T), how much better the judge finds drawn and most likely outputs, figures (B,)."""
    config, cqt = module.model_config, batch["cqt"]
    head, grpo, frames = config.head, config.grpo, cqt.shape[-1]
    now, start = module.generator(cqt), module.start(cqt)
    shape = (grpo.group, LIGHTS, head.levels, now.shape[-1])
    uniform = KeyedRandom(0).uniform("cqtml/evaluate", batch["position"], shape, now.device)
    drawn = [draw(logits, uniform, grpo.temperature, head) for logits in (now, start)]
    likely = [to_frames(most_likely(logits, head), frames) for logits in (now, start)]
    onsets = heard(batch)
    scores = [HELD_OUT.score(to_frames(each, frames), onsets) for each in drawn]
    likely_scores = [HELD_OUT.score(each[:, None], onsets)[:, 0] for each in likely]
    rewards = [module.taste(cqt, to_frames(each, frames)).mean(1) for each in drawn]
    return {
        "lights": likely[0],
        "onsets": onsets,
        "better_drawn": (scores[0] - scores[1]).flatten(),
        "better_most_likely": likely_scores[0] - likely_scores[1],
        "held_out_judge": scores[0].mean(1),
        "start_held_out_judge": scores[1].mean(1),
        "held_out_judge_most_likely": likely_scores[0],
        "start_held_out_judge_most_likely": likely_scores[1],
        "reward_gain": rewards[0] - rewards[1],
        "kl": divergence(now, start, grpo.temperature).mean((1, 2)),
        "diversity": diversity(drawn[0]),
        "start_diversity": diversity(drawn[1]),
        **locality(module.generator, config, cqt),
    }
