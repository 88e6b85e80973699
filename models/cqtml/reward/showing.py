"""A comparison as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.cqtml.showing import write_lights

if TYPE_CHECKING:
    from models.cqtml.reward.train_module import TrainModule
    from pipeline.train_module import Batch


@torch.no_grad()
def show_pair(module: TrainModule, batch: Batch, folder: Path, step: int) -> None:
    """The first comparison of a batch."""
    rewards = [float(side[0]) for side in module.rewards(batch)]
    share = float(batch["choice"][0])
    rows = [
        (f"{side}: reward {reward:+.2f}, preferred by {100 * votes:.0f} %", batch[side][0].float())
        for side, reward, votes in zip("ab", rewards, (share, 1 - share), strict=True)
    ]
    write_lights(folder / "comparison.png", f"CQTML's reward after {step} steps", batch["cqt"][0].float().cpu(), rows)
