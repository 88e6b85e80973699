"""What knobs a console has: their names, units and ranges. No torch: a config and a preset are checked by this.

The ranges are those of Diff-MST (arXiv 2407.08889, Section 4); a high-pass, a de-esser and echoes are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from pipeline.config import Section as ConfigSection

Band = Literal["low_shelf", "peak_1", "peak_2", "peak_3", "peak_4", "high_shelf"]
BANDS: tuple[Band, ...] = get_args(Band)
REVERB_BANDS = 12
TOP = 1000.0  # Hz below half the sample rate: no filter is tuned higher


@dataclass(frozen=True)
class Knob:
    """One parameter. ``start`` is where an untrained controller leaves it; ``logarithmic`` knobs are turned in octaves."""

    name: str
    unit: str
    low: float
    high: float
    start: float
    logarithmic: bool = False

    def from_turn(self, turn: float) -> float:
        """Position 0..1 of the knob -> its value."""
        if self.logarithmic:
            return self.low * (self.high / self.low) ** turn
        return self.low + (self.high - self.low) * turn

    def to_turn(self, value: float) -> float:
        """The inverse of ``from_turn``."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


Section = tuple[Knob, ...]


class Switches(ConfigSection):
    """Which parts a console has; the defaults are the paper's: 27 knobs a track, 25 of the bus, 26 of the master.

    A single track does without ``fader`` (its gain is the compressor's make-up, its threshold moves with it) and without ``master``;
    ``reverb_mix`` lets the reverb's bus pass some of its input. Who mixes one voice may have fewer ``bands``, and a room of one decay
    (``room_tone`` false) instead of a gain and a decay for each of twelve bands: fewer knobs that do the work of others.
    """

    tracks: int = Field(1, gt=0)
    fader: bool = True
    high_pass: bool = False
    de_esser: bool = False
    echo: bool = False
    reverb_mix: bool = True
    room_tone: bool = True
    bands: tuple[Band, ...] = Field(BANDS, min_length=1)
    master: bool = True
    softest_knee: float = Field(3.0, ge=0, lt=12)  # dB; 0 lets a compressor have a hard knee

    def layout(self, sample_rate: int) -> Layout:
        return Layout(**self.model_dump() | {"sample_rate": sample_rate})


class Layout(Switches):
    """``sample_rate`` in Hz bounds what the filters can be tuned to."""

    sample_rate: int = Field(gt=0)

    @property
    def sections(self) -> dict[str, Section]:
        """By name, in the order of a controller's outputs: ``track`` (one for each), ``bus`` and, where there is one, ``master``."""
        found = {"track": self.track, "bus": self.bus}
        return found | {"master": self.master_strip} if self.master else found

    @property
    def track(self) -> Section:
        return (
            *((Knob("gain", "dB", -48, 48, 0),) if self.fader else ()),
            *((Knob("high_pass_frequency", "Hz", 20, 400, 60, True),) if self.high_pass else ()),
            *equaliser(self.sample_rate, self.bands),
            *compressor(self.softest_knee),
            *(DE_ESSER if self.de_esser else ()),
            Knob("pan", "-1 left to 1 right", -1, 1, 0),
            Knob("reverb_send", "dB", -80, 12, -24),
            *((Knob("echo_send", "dB", -80, 12, -36),) if self.echo else ()),
        )

    @property
    def bus(self) -> Section:
        bands = range(1, REVERB_BANDS + 1)
        return (
            *(Knob(f"reverb_gain_{band}", "dB", -24, 12, 0) for band in bands if self.room_tone),
            *(Knob(f"reverb_decay_{band}", "s", 0.1, 4, 1, True) for band in bands if self.room_tone),
            *(() if self.room_tone else (Knob("reverb_decay", "s", 0.1, 4, 1, True),)),
            *((Knob("reverb_mix", "share", 0, 1, 0.9),) if self.reverb_mix else ()),
            *(ECHO if self.echo else ()),
        )

    @property
    def master_strip(self) -> Section:
        return (
            Knob("gain", "dB", -48, 48, 0),
            *equaliser(self.sample_rate, self.bands),
            *compressor(self.softest_knee),
            Knob("output_gain", "dB", -48, 48, 0),
        )


def equaliser(sample_rate: int, wanted: tuple[Band, ...] = BANDS) -> Section:
    """Six bands, low shelf, four peaks, high shelf; or those of them that are wanted."""
    top = sample_rate / 2 - TOP
    bands: tuple[tuple[Band, float, float, float], ...] = (
        ("low_shelf", 20.0, 2000.0, 150.0),
        ("peak_1", 80.0, 2000.0, 400.0),
        ("peak_2", 2000.0, 8000.0, 4000.0),
        ("peak_3", 8000.0, 12000.0, 9800.0),
        ("peak_4", 12000.0, top, math.sqrt(12000.0 * top)),
        ("high_shelf", 6000.0, top, 9000.0),
    )
    return tuple(
        knob
        for name, low, high, start in bands
        if name in wanted
        for knob in (
            Knob(f"{name}_gain", "dB", -12, 12, 0),
            Knob(f"{name}_frequency", "Hz", low, high, start, True),
            Knob(f"{name}_q", "Q", 0.1, 5, 0.8, True),
        )
    )


def compressor(softest_knee: float) -> Section:
    return (
        Knob("threshold", "dB", -60, 0, -24),
        Knob("ratio", ": 1", 1, 10, 2, True),
        Knob("attack", "ms", 5, 250, 15, True),
        Knob("release", "ms", 10, 250, 100, True),
        Knob("knee", "dB", softest_knee, 12, (softest_knee + 12) / 2),
        Knob("make_up", "dB", 0, 6, 2),
    )


DE_ESSER: Section = (
    Knob("sibilance_frequency", "Hz", 3000, 10000, 6000, True),
    Knob("sibilance_threshold", "dB", -60, 0, -20),
    Knob("sibilance_ratio", ": 1", 1, 10, 1.5, True),
)
ECHO: Section = (
    Knob("echo_time", "ms", 50, 800, 300, True),
    Knob("echo_feedback", "share", 0.05, 0.6, 0.3),
    Knob("echo_damping", "Hz", 1000, 12000, 5000, True),
)
