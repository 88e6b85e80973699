"""How far settings are from those a song was really mixed with, where that is known (the demo's vocals): knob by knob, and as a curve.

A high-pass, two peaks and a high shelf of the true chain have their counterparts in the console; what the true chain has not
(low shelf, two peaks) is judged by the curve of all together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.blocks.console import filters
from models.blocks.console.layout import Layout
from models.blocks.console.settings import Settings, named
from models.diff_mst.showing import equaliser_curve

HERTZ = torch.logspace(1.9, 4.2, 200)  # 80 Hz to 16 kHz
BANDS = ("high_pass", "peak_1", "peak_2", "high_shelf")  # the console's names of the true chain's bands, in its order
UNITS = {"-1 left to 1 right": "share"}  # as figures are named
KNOBS = ("threshold", "ratio", "attack", "release", "reverb_send", "pan")


def true_knobs(settings: dict[str, Any]) -> dict[str, float]:
    """The known chain in the console's names and units; ``make_up`` with the gain that kept the file from clipping."""
    found = {name: float(settings[name]) for name in KNOBS}
    found |= {"make_up": settings["make_up"] + settings["gain"], "reverb_decay": float(settings["reverb_seconds"])}
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


@dataclass(frozen=True)
class Stand:
    """How a strip and its room stand: knobs by name in their units, and the equaliser's curve, dB at HERTZ."""

    knobs: dict[str, float]
    curve: Tensor


def stand(settings: Settings, layout: Layout) -> Stand:
    """Of one setting of one track, (1, 1, 1, P)."""
    track, bus = (settings[name][:, 0, 0].cpu() for name in ("track", "bus"))
    values = named(track, layout.track) | named(bus, layout.bus)
    curve = equaliser_curve(track, layout.track, layout.sample_rate, HERTZ)[0]
    return Stand({name: float(value) for name, value in values.items()}, curve)


def true_stand(known: dict[str, Any], sample_rate: int) -> Stand:
    return Stand(true_knobs(known), true_curve(known, sample_rate))


def typical(stands: Sequence[Stand], layout: Layout) -> Stand:
    """The mean of several: what one preset for all songs can do at best. Logarithmic knobs by their logarithms."""
    knobs = {}
    for knob in (*layout.track, *layout.bus):
        if all(knob.name in one.knobs for one in stands):
            values = torch.tensor([one.knobs[knob.name] for one in stands])
            knobs[knob.name] = float(values.log().mean().exp() if knob.logarithmic else values.mean())
    return Stand(knobs, torch.stack([one.curve for one in stands]).mean(0))


def parameter_errors(ours: Stand, true: Stand, layout: Layout) -> dict[str, float]:
    """Absolute errors by knob, in its unit (frequencies, times, ratios and Q in octaves), and ``equaliser_db``: root mean square
    difference of the curves over log frequency, the level left out, since that is the gain's."""
    found = {}
    for knob in (*layout.track, *layout.bus):
        if knob.name in true.knobs and knob.name in ours.knobs:
            value, wanted = ours.knobs[knob.name], true.knobs[knob.name]
            error = math.log2(value / wanted) if knob.logarithmic else value - wanted
            unit = "octaves" if knob.logarithmic else UNITS.get(knob.unit, knob.unit.lower())
            found[f"{knob.name}_{unit}"] = abs(error)
    curve = ours.curve - true.curve
    return found | {"equaliser_db": float((curve - curve.mean()).square().mean().sqrt())}
