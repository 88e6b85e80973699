"""How the knobs of a console stand, as tensors: turned by a network, named, along time.

Shapes: B samples of a batch, S strips of a section (tracks; one bus, one master), K settings along time, P knobs, T control points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.blocks.console.layout import Layout, Section
from models.blocks.precision import kept_for_all

Settings = dict[str, Tensor]  # section -> values (B, S, K, P), each in its knob's unit
Knobs = dict[str, Tensor]  # name -> values (B, S, K)


def from_turns(turns: Tensor, section: Section) -> Tensor:
    """Positions 0..1 (..., P) -> values in each knob's unit; differentiable."""
    low, high, curved = _ends(section, turns.dtype, turns.device)
    ratio = torch.where(curved, high / torch.where(curved, low, torch.ones_like(low)), torch.ones_like(low))
    return torch.where(curved, low * ratio**turns, low + (high - low) * turns)


@kept_for_all
def _ends(section: Section, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) each: the knobs' lowest and highest values, and which are turned in octaves."""
    low, high = (torch.tensor([float(getattr(knob, end)) for knob in section], dtype=dtype) for end in ("low", "high"))
    return low.to(device), high.to(device), torch.tensor([knob.logarithmic for knob in section]).to(device)


def to_turns(values: Tensor, section: Section) -> Tensor:
    """The inverse of ``from_turns``; what lies out of range comes to its end."""
    columns = [
        (value.clamp(knob.low, knob.high) / knob.low).log() / torch.tensor(knob.high / knob.low).log()
        if knob.logarithmic
        else (value.clamp(knob.low, knob.high) - knob.low) / (knob.high - knob.low)
        for knob, value in zip(section, values.unbind(-1), strict=True)
    ]
    return torch.stack(columns, dim=-1)


def named(values: Tensor, section: Section) -> Knobs:
    """(B, S, K, P) -> (B, S, K) by name."""
    return dict(zip((knob.name for knob in section), values.unbind(-1), strict=True))


def within(settings: Settings, layout: Layout) -> Settings:
    """The settings with every knob inside its range of ``layout``: another sample rate has other highest frequencies."""
    return {
        name: torch.stack(
            [v.clamp(knob.low, knob.high) for knob, v in zip(section, settings[name].unbind(-1), strict=True)], dim=-1
        )
        for name, section in layout.sections.items()
    }


def start_settings(layout: Layout, batch: int = 1) -> Settings:
    """Every knob where it starts, for ``batch`` samples and one setting."""
    strips = {"track": layout.tracks}
    return {
        name: torch.tensor([float(knob.start) for knob in section]).expand(batch, strips.get(name, 1), 1, -1).clone()
        for name, section in layout.sections.items()
    }


def along(knob: Tensor, points: int, hop: int, spacing: int | None) -> Tensor:
    """(..., K) -> (..., T) by straight lines between the settings, ``spacing`` samples apart, at points ``hop`` samples apart; (..., 1)
    where there is only one setting. The first one stands at point 0; after the last one it holds."""
    settings = knob.shape[-1]
    if settings == 1 or spacing is None:
        return knob
    at = torch.arange(points, device=knob.device) * hop  # whole numbers: an hour's samples are no single-precision ones
    low = (at // spacing).clamp(max=settings - 2)
    share = ((at - low * spacing).to(knob.dtype) / spacing).clamp(max=1)
    return knob[..., low] * (1 - share) + knob[..., low + 1] * share
