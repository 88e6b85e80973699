"""What one looks at: the lights of a song over time beside its constant-Q transform.

Shapes: B inputs, T frames, n audio samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.cqtml.brightness import most_likely, to_frames
from models.cqtml.config import FRAME_RATE, LIGHTS, ModelConfig
from models.cqtml.music import taught
from models.cqtml.network import Generator
from models.features import CQT
from models.showing import canvas, save, write_wave
from pipeline.train_module import Batch

NAMES = ("light 1", "light 2", "light 3", "light 4")
COLOURS = ("#d1495b", "#edae49", "#00798c", "#6a4c93")
WIDEST = 3000  # frames that a transform is drawn with


def write_lights(path: Path, heading: str, cqt: Tensor, rows: Sequence[tuple[str, Tensor]]) -> Path:
    """A transform (2, 84, T), and below it for every (title, brightness (4, T)) the four lights."""
    figure, axes = canvas(1 + len(rows), 1, width=9.0, height=1.9)
    seconds = cqt.shape[-1] / FRAME_RATE
    extent = (0.0, seconds, 0.0, float(cqt.shape[-2]))
    drawn = cqt[0, :, :: max(1, cqt.shape[-1] // WIDEST)].float().cpu().numpy()
    axes[0][0].imshow(drawn, origin="lower", aspect="auto", extent=extent, cmap="magma")
    axes[0][0].set_title("what is heard: constant-Q transform, log-magnitude", fontsize=9)
    octaves = range(0, cqt.shape[-2], CQT.bins_per_octave)
    axes[0][0].set_yticks(list(octaves), [f"{CQT.frequencies[k]:.0f}" for k in octaves], fontsize=7)
    axes[0][0].set_ylabel("Hz", fontsize=8)
    axes[0][0].tick_params(labelsize=7)
    for row, (title, lights) in enumerate(rows, start=1):
        _curves(axes[row][0], title, lights, seconds)
    axes[-1][0].set_xlabel("s", fontsize=8)
    figure.suptitle(heading, fontsize=12)
    return save(figure, path)


def _curves(axis: Any, title: str, lights: Tensor, seconds: float) -> None:
    """Four curves, each on a floor of its own."""
    time = torch.linspace(0, seconds, lights.shape[-1]).numpy()
    for number, curve in enumerate(lights.float().cpu().numpy()):
        floor = LIGHTS - 1 - number
        axis.fill_between(time, floor, floor + 0.95 * curve, color=COLOURS[number], linewidth=0)
    axis.set_yticks([LIGHTS - 1 - n + 0.4 for n in range(LIGHTS)], NAMES, fontsize=7)
    axis.set(xlim=(0, seconds), ylim=(0, LIGHTS))
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)


@torch.no_grad()
def show_training(generator: Generator, config: ModelConfig, batch: Batch, folder: Path, step: int) -> None:
    """The first segment: what its lights do, what they were taught, and its audio."""
    cqt = batch["cqt"][:1]
    lights = to_frames(most_likely(generator(cqt), config.head), cqt.shape[-1])[0]
    rows = [("what the lights do", lights), ("what they were taught", taught(cqt, config.warm_start.release)[0])]
    write_lights(folder / "lights.png", f"CQTML after {step} steps", cqt[0].cpu(), rows)
    write_wave(folder / "music.wav", batch["audio"][0].float() / 32768, CQT.sample_rate)
