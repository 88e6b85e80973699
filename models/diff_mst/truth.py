"""How far settings are from those a song was really mixed with, where that is known (the demo's vocals): knob by knob, and as a curve.

A high-pass, two peaks and a high shelf of the true chain have their counterparts in the console; what the true chain has not
(low shelf, two peaks) is judged by the curve of all together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.blocks.console import filters
from models.blocks.console.layout import Layout
from models.blocks.console.settings import Settings, named
from models.diff_mst.showing import equaliser_curve

HERTZ = torch.logspace(1.9, 4.2, 200)  # 80 Hz to 16 kHz
BANDS = ("high_pass", "peak_1", "peak_2", "high_shelf")  # the console's names of the true chain's bands, in its order
KNOBS = ("threshold", "ratio", "attack", "release", "reverb_send", "pan")


def true_knobs(settings: dict[str, Any]) -> dict[str, float]:
    """The known chain in the console's names and units; ``make_up`` with the gain that kept the file from clipping."""
    found = {name: float(settings[name]) for name in KNOBS} | {"make_up": settings["make_up"] + settings["gain"]}
    for name, band in zip(BANDS, settings["bands"], strict=True):
        found[f"{name}_frequency"] = float(band["hertz"])
        if name != "high_pass":
            found |= {f"{name}_gain": float(band["decibels"]), f"{name}_q": float(band["q"])}
    return found


def true_curve(settings: dict[str, Any], sample_rate: int) -> Tensor:
    """dB of the true equaliser at HERTZ."""
    found = []
    for band in settings["bands"]:
        hertz, decibels, q = (torch.tensor(float(band[key]), dtype=torch.float64) for key in ("hertz", "decibels", "q"))
        found.append(filters.coefficients(band["kind"], hertz, decibels, q, sample_rate))
    return 20 * filters.cascade(torch.stack(found), 2 * torch.pi / sample_rate * HERTZ).abs().log10()


def parameter_errors(settings: Settings, known: dict[str, Any], layout: Layout) -> dict[str, float]:
    """Absolute errors by knob, in its unit (frequencies, times, ratios and Q in octaves), of one setting (1, 1, 1, P); and
    ``equaliser_db``: root mean square difference of the curves over log frequency, the level left out, since that is the gain's."""
    section = layout.sections["track"]
    ours, true = named(settings["track"][:, 0, 0], section), true_knobs(known)
    found = {}
    for knob in section:
        if knob.name in true:
            value = float(ours[knob.name])
            wanted = torch.tensor(true[knob.name])
            error = torch.tensor(value).log2() - wanted.log2() if knob.logarithmic else torch.tensor(value) - wanted
            found[f"{knob.name}_{'octaves' if knob.logarithmic else knob.unit.split()[0].lower()}"] = abs(float(error))
    curve = equaliser_curve(settings["track"][:, 0, 0], section, layout.sample_rate, HERTZ)[0] - true_curve(
        known, layout.sample_rate
    )
    found["equaliser_db"] = float((curve - curve.mean()).square().mean().sqrt())
    return {name.replace("-1", "share"): value for name, value in found.items()}
