"""A preset: the settings of a mix as JSON that people read and the console renders again, bit for bit.

    {"format": 1, "console": {...}, "spacing": samples between two settings or null, "turned_down_db": 0.0,
     "tracks": [{"name": ..., "trim_db": ..., "settings": [{"seconds": 0.0, "pan": 0.1, ...}, ...]}, ...],
     "bus": [{...}], "master": [{...}]}

A preset made at one sample rate renders at another: its frequencies are bounded by what that has.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from models.blocks.console.layout import Layout, Section
from models.blocks.console.settings import Settings, within
from pipeline.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Preset:
    """``trims`` in dB by track; ``settings`` of one sample (1, S, K, P); ``spacing`` in samples at ``layout.sample_rate``."""

    layout: Layout
    settings: Settings
    names: tuple[str, ...]
    trims: tuple[float, ...]
    spacing: int | None = None
    turned_down: float = 0.0  # dB that the mix was lowered by, so that nothing clips

    def at(self, sample_rate: int) -> Preset:
        """The same at another sample rate."""
        layout = self.layout.layout(sample_rate)
        spacing = None if self.spacing is None else round(self.spacing * sample_rate / self.layout.sample_rate)
        return replace(self, layout=layout, settings=within(self.settings, layout), spacing=spacing)

    def to_json(self) -> str:
        values = {name: self._values(name, section) for name, section in self.layout.sections.items()}
        tree: dict[str, Any] = {
            "format": FORMAT,
            "console": self.layout.model_dump(),
            "spacing": self.spacing,
            "turned_down_db": self.turned_down,
            "tracks": [
                {"name": name, "trim_db": trim, "settings": rows}
                for name, trim, rows in zip(self.names, self.trims, values.pop("track"), strict=True)
            ],
        }
        return json.dumps(tree | {name: strips[0] for name, strips in values.items()}, indent=1) + "\n"

    def _values(self, name: str, section: Section) -> list[list[dict[str, float]]]:
        step = (self.spacing or 0) / self.layout.sample_rate
        return [
            [
                {"seconds": k * step} | dict(zip((knob.name for knob in section), row, strict=True))
                for k, row in enumerate(rows)
            ]
            for rows in self.settings[name][0].tolist()
        ]


def read_preset(path: Path) -> Preset:
    """UserError where the file is none, lacks a knob, or sets one out of its range."""
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; --preset takes a settings.json of this command."
        ) from None
    except ValueError:
        raise UserError(f"{path} is not JSON; --preset takes a settings.json that this command wrote.") from None
    try:
        return _parsed(tree)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path} is no preset of this format: {_said(error)}; write one with generate.py first."
        ) from None


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"console.{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _parsed(tree: dict[str, Any]) -> Preset:
    if tree["format"] != FORMAT:
        raise ValueError(f"format {tree['format']}, {FORMAT} is read")
    known = set(Layout.model_fields)
    if strange := sorted(tree["console"].keys() - known):
        raise ValueError(f"unknown key console.{strange[0]}; there are {', '.join(sorted(known))}")
    layout = Layout(**tree["console"])
    strips = {"track": [track["settings"] for track in tree["tracks"]], "bus": [tree["bus"]]}
    if layout.master:
        strips["master"] = [tree["master"]]
    if len(strips["track"]) != layout.tracks:
        raise ValueError(f"{len(strips['track'])} tracks for a console of {layout.tracks}")
    settings = {name: _tensor(strips[name], section, name) for name, section in layout.sections.items()}
    spacing = tree["spacing"]
    if spacing is None and any(values.shape[2] > 1 for values in settings.values()):
        raise ValueError("several settings need a spacing")
    if spacing is not None and not (isinstance(spacing, int) and spacing >= layout.sample_rate // 10):
        raise ValueError("spacing must be a whole number of samples, a tenth of a second or more")
    names = tuple(str(track["name"]) for track in tree["tracks"])
    trims = tuple(float(track["trim_db"]) for track in tree["tracks"])
    return Preset(layout, settings, names, trims, spacing, float(tree["turned_down_db"]))


def _tensor(strips: list[list[dict[str, float]]], section: Section, where: str) -> Tensor:
    """(1, S, K, P)."""
    for row in (row for strip in strips for row in strip):
        for knob in section:
            value, slack = row[knob.name], 1e-4 * (knob.high - knob.low)
            if not math.isfinite(value) or not knob.low - slack <= value <= knob.high + slack:
                raise ValueError(
                    f"{where}.{knob.name} is {value}; its range is {knob.low:g} to {knob.high:g} {knob.unit}"
                )
    if not strips or not strips[0] or len({len(strip) for strip in strips}) != 1:
        raise ValueError(f"{where} has no settings, or not equally many for each track")
    values = [[[row[knob.name] for knob in section] for row in strip] for strip in strips]
    return torch.tensor(values, dtype=torch.float32)[None]
