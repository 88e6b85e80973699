"""The figures of a generator on held-out songs, with 95 % intervals.

``..._onset_correlation``: do the lights rise where onsets are, heard in the waveform by mel bands and not in the CQT that the network sees;
``..._shuffled``: with another segment's onsets; ``..._gain``: the difference. Beside the ``model`` stands the plain baseline
``onset_to_light``, the curves that it was taught where there are no notes. ``diversity_at_T``: deviation of brightness over 8 outputs
drawn at temperature T.
``locality``: of the change when the last tenth of what is heard becomes another's, the share that lies in that tenth and one column, as
absolute changes; ``locality_energy``: as squares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.cqtml.brightness import draw, expected, most_likely, to_columns, to_frames
from models.cqtml.config import LIGHTS
from models.cqtml.generator.train_module import TrainModule
from models.cqtml.grpo import diversity
from models.cqtml.judge import HELD_OUT, heard
from models.cqtml.measuring import held_out, locality, onset_figures
from models.cqtml.music import taught
from models.cqtml.showing import write_lights
from models.metrics import Figure, mean
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch

TEMPERATURES = (0.25, 0.5, 1.0, 2.0)
DRAWS = 8
PICTURED = 3


@torch.no_grad()
def evaluate(module: TrainModule, data_folder: Path, out: Path, split: str = "test") -> Mapping[str, Figure | float]:
    """The figures by name; pictures of the first segments go to ``out``. UserError where the split is too small."""
    module.eval()
    device = module.generator.hearing.mean.device
    found: dict[str, list[Tensor]] = defaultdict(list)
    for number, batch in enumerate(held_out(data_folder, split, device)):
        for name, value in _measured(module, batch).items():
            found[name].append(value.cpu())
        if number == 0:
            _show(module, batch, out)
    whole = {name: torch.cat(parts) for name, parts in found.items()}
    figures: dict[str, Figure | float] = {}
    for name in ("model", "onset_to_light"):
        lights = whole.pop(f"{name}_lights")
        figures |= onset_figures(name, lights, whole["onsets"])
        figures[f"{name}_held_out_judge"] = mean(HELD_OUT.score(lights[:, None], whole["onsets"]))
    del whole["onsets"]
    return figures | {name: mean(values) for name, values in whole.items()}


def _measured(module: TrainModule, batch: Batch) -> dict[str, Tensor]:
    """Of every segment: lights (B, 4, T), onsets (B, T), and figures (B,)."""
    config, cqt = module.model_config, batch["cqt"]
    logits = module.generator(cqt)
    target = taught(cqt, config.warm_start.release)
    found = {
        "model_lights": to_frames(most_likely(logits, config.head), cqt.shape[-1]),
        "onset_to_light_lights": target,
        "onsets": heard(batch),
        "brightness_error": (expected(logits, config.head) - to_columns(target)).abs().mean((1, 2)),
        **locality(module.generator, config, cqt),
    }
    shape = (DRAWS, LIGHTS, config.head.outputs, logits.shape[-1])
    uniform = KeyedRandom(0).uniform("cqtml/evaluate", batch["position"], shape, logits.device)
    return found | {f"diversity_at_{t:g}": diversity(draw(logits, uniform, t, config.head)) for t in TEMPERATURES}


def _show(module: TrainModule, batch: Batch, out: Path) -> None:
    config = module.model_config
    for number, cqt in enumerate(batch["cqt"][:PICTURED]):
        lights = to_frames(most_likely(module.generator(cqt[None]), config.head), cqt.shape[-1])[0]
        rows = [
            ("most likely", lights),
            ("onset to light, the baseline", taught(cqt[None], config.warm_start.release)[0]),
        ]
        write_lights(out / f"segment_{number}.png", f"CQTML, held-out segment {number}", cqt.cpu(), rows)
