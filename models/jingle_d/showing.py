"""What one looks at and listens to: the output beside both recordings and their average, and who is heard where.

Shapes: C latent channels, L frames, n audio samples.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.features import MelSpec, log_mel
from models.jingle_d.sampling import Rendered, render
from models.jingle_d.train_module import TrainModule
from models.showing import Panel, canvas, save, write_picture, write_wave
from pipeline.train_module import Batch

MEL = MelSpec(sample_rate=24000, bands=64, window=2048, hop=512)


def average(given: Tensor, target: Tensor) -> Tensor:
    """(..., n) each: the trivial mix, which every figure is held against."""
    return (given + target) / 2


def write_all(
    folder: Path, heading: str, given: Tensor, target: Tensor, made: Rendered, sample_rate: int
) -> list[Path]:
    """WAVs and pictures of one pair: waveforms (n) and what was made of them (B = 1)."""
    output, mix = made.wave[0].cpu(), average(given, target).cpu()
    files = [
        write_wave(folder / f"{name}.wav", wave, sample_rate) for name, wave in (("output", output), ("average", mix))
    ]
    waves = {"input": given, "target": target, "output": output, "average": mix}
    rows = [
        (label, [Panel(name, log_mel(waves[name].float().cpu(), MEL)) for name in names])
        for label, names in (("given", ("input", "target")), ("made", ("output", "average")))
    ]
    files.append(write_picture(folder / "spectrograms.png", heading, rows, MEL))
    seconds = len(output) / sample_rate
    return [*files, write_masks(folder / "masks.png", heading, made.input_mask[0], made.target_mask[0], seconds)]


def write_masks(path: Path, heading: str, first: Tensor, second: Tensor, seconds: float) -> Path:
    """The input's and the target's mask (C, L): every channel over time, and below their means over channels."""
    figure, axes = canvas(2, 2, width=4.0)
    image = None
    for column, (name, mask) in enumerate((("input", first), ("target", second))):
        picture = mask.float().cpu().numpy()
        above, below = axes[0][column], axes[1][column]
        extent = (0.0, seconds, 0.0, float(len(picture)))
        image = above.imshow(picture, origin="lower", aspect="auto", extent=extent, cmap="viridis", vmin=0, vmax=1)
        above.set_title(f"mask of the {name}", fontsize=10)
        below.plot([seconds * (i + 0.5) / picture.shape[1] for i in range(picture.shape[1])], picture.mean(0))
        below.set(ylim=(0, 1), xlim=(0, seconds), xlabel="s")
        if column == 0:
            above.set_ylabel("latent channel", fontsize=8)
            below.set_ylabel("mean", fontsize=8)
        for axis in (above, below):
            axis.tick_params(labelsize=8)
    figure.colorbar(image, ax=axes[0], label="heard", shrink=0.9)
    figure.suptitle(heading, fontsize=12)
    return save(figure, path)


@torch.no_grad()
def show_pair(module: TrainModule, batch: Batch, folder: Path, step: int) -> None:
    """The first pair of a validation batch."""
    from models.jingle_d.data import pair

    given, target = (module.scale.apply(latent[:1]) for latent in pair(batch, shuffled=False))
    made = render(module, given, target)
    first, second = (module.decode(x)[0].cpu() for x in (given, target))
    write_all(folder, f"Jingle_D after {step} steps", first, second, made, int(module.data["sample_rate"]))
