"""A policy beside the generator that it was tuned from, as a picture and a waveform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.cqtml.brightness import most_likely, to_frames
from models.cqtml.showing import write_lights
from models.features import CQT
from models.showing import write_wave

if TYPE_CHECKING:
    from models.cqtml.policy.train_module import TrainModule
    from pipeline.train_module import Batch


@torch.no_grad()
def show_tuning(module: TrainModule, batch: Batch, folder: Path, heading: str) -> None:
    """The first segment of a batch: its most likely output, before and now, and its audio."""
    cqt = batch["cqt"][:1]
    rows = [
        (title, to_frames(most_likely(network(cqt), module.model_config.head), cqt.shape[-1])[0])
        for title, network in (("tuned", module.generator), ("as it began", module.start))
    ]
    write_lights(folder / "lights.png", heading, cqt[0].cpu(), rows)
    write_wave(folder / "music.wav", batch["audio"][0].float() / 32768, CQT.sample_rate)
