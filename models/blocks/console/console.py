"""The console: what each strip does to its track, what goes to the busses, and what the master does to all of it.

    track   gain -> high-pass -> six-band equaliser -> compressor -> de-esser -> pan, sends
    bus     reverb, echoes
    master  gain -> equaliser -> compressor (both channels alike) -> output gain

Settings may move: K of them stand ``spacing`` samples apart, and between two everything is crossfaded (filters) or interpolated
(gains and dynamics). Nothing is delayed, so what comes out is in step with what goes in.

Shapes: B samples of a batch, N tracks, n samples, K settings along time, T milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.blocks.console import convolution, dynamics, filters, space
from models.blocks.console.layout import Layout
from models.blocks.console.settings import Knobs, Settings, along, named
from models.blocks.fourier import rfft
from models.blocks.precision import full_precision, kept_for_all

RINGING = 0.7  # seconds after which the narrowest filter is silent (-60 dB at 20 Hz and Q 5)
KINDS: dict[str, filters.Kind] = {
    "low_shelf": "low_shelf",
    "peak_1": "peak",
    "peak_2": "peak",
    "peak_3": "peak",
    "peak_4": "peak",
    "high_shelf": "high_shelf",
}
BUTTERWORTH = 0.7071
BACKWARDS = 10  # milliseconds after which a high-pass above 3 kHz is silent


@dataclass
class Rendered:
    """``mix`` (B, 2, n); ``reduction`` by name ("compressor", "de_esser": (B, N, T); "master": (B, 1, T)) in dB."""

    mix: Tensor
    reduction: dict[str, Tensor] = field(default_factory=dict)


class Console:
    """A console of the given layout; stateless, differentiable with respect to tracks and settings."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.hop = dynamics.control_hop(layout.sample_rate)

    @full_precision
    def __call__(self, tracks: Tensor, settings: Settings, spacing: int | None = None) -> Rendered:
        """Tracks (B, N, n) -> their mix. ``spacing``: samples from one of several settings to the next."""
        if settings["track"].shape[2] > 1 and spacing is None:
            raise ValueError("several settings need a spacing")
        strips = {name: named(settings[name], section) for name, section in self.layout.sections.items()}
        strip, bus = strips["track"], {name: knob[:, 0] for name, knob in strips["bus"].items()}
        found = Rendered(tracks)
        wave = self._strip(tracks, strip, spacing, found)
        if self.layout.de_esser:
            wave = self._de_essed(wave, strip, spacing, found)
        angle = torch.pi / 4 * (1 + self._control(strip["pan"], wave, spacing))  # constant power
        sides = [(wave * self._samples(side, wave)).sum(1) for side in (angle.cos(), angle.sin())]
        mix = torch.stack(sides, dim=1)
        mix = mix + self._reverb(self._sent(wave, strip["reverb_send"], spacing), bus, spacing)
        if self.layout.echo:
            mix = mix + self._echoes(self._sent(wave, strip["echo_send"], spacing), bus, spacing)
        if self.layout.master:
            mix = self._master(mix, strips["master"], spacing, found)
        found.mix = mix
        return found

    def _strip(self, wave: Tensor, strip: Knobs, spacing: int | None, found: Rendered) -> Tensor:
        if self.layout.fader:
            wave = wave * self._gain(strip["gain"], wave, spacing)
        return self._compressed(self._equalised(wave, strip, spacing), strip, spacing, found, "compressor")

    def _master(self, mix: Tensor, strip: Knobs, spacing: int | None, found: Rendered) -> Tensor:
        mix = mix * self._gain(strip["gain"], mix, spacing)
        mix = self._compressed(self._equalised(mix, strip, spacing), strip, spacing, found, "master", linked=True)
        return mix * self._gain(strip["output_gain"], mix, spacing)

    def _equalised(self, wave: Tensor, strip: Knobs, spacing: int | None) -> Tensor:
        sections = equaliser_sections(strip, self.layout.sample_rate)
        tail = round(RINGING * self.layout.sample_rate)

        def response(k: int, size: int) -> Tensor:
            return filters.sampled(sections[:, :, k], size)

        return convolution.convolve(wave, response, tail, sections.shape[2], spacing)

    def _compressed(
        self, wave: Tensor, strip: Knobs, spacing: int | None, found: Rendered, name: str, linked: bool = False
    ) -> Tensor:
        level = dynamics.peak_levels(wave, self.hop)
        if linked:
            level = level.amax(1, keepdim=True)
        reduction = dynamics.compressor_reduction(level, self._controlled(strip, wave, spacing), self._step_ms)
        found.reduction[name] = reduction.detach()
        make_up = self._control(strip["make_up"], wave, spacing)
        return wave * self._samples(_linear(make_up - reduction), wave)

    def _de_essed(self, wave: Tensor, strip: Knobs, spacing: int | None, found: Rendered) -> Tensor:
        """The band above the sibilance frequency is lowered where it is loud; without reduction the sound is untouched.

        The band is in phase with the whole (a Butterworth filter forwards and backwards), or lowering it would take little away.
        """
        hertz = strip["sibilance_frequency"]
        flat, q = torch.zeros_like(hertz), torch.full_like(hertz, BUTTERWORTH)
        section = filters.coefficients("high_pass", hertz, flat, q, self.layout.sample_rate)[..., None, :]
        early = BACKWARDS * self.hop

        def response(k: int, size: int) -> Tensor:
            forwards = filters.sampled(section[:, :, k], size)
            return (forwards * forwards.conj()) * _delay(early, size, forwards.dtype, wave.device)

        late = torch.nn.functional.pad(wave, (0, early))
        band = convolution.convolve(late, response, 2 * early, hertz.shape[-1], spacing)[..., early:]
        level = dynamics.peak_levels(band, self.hop)
        reduction = dynamics.de_esser_reduction(level, self._controlled(strip, wave, spacing), self._step_ms)
        found.reduction["de_esser"] = reduction.detach()
        return wave + (self._samples(_linear(-reduction), wave) - 1) * band

    def _sent(self, wave: Tensor, send: Tensor, spacing: int | None) -> Tensor:
        """(B, 1, n): what all tracks send to a bus."""
        return (wave * self._gain(send, wave, spacing)).sum(1, keepdim=True)

    def _reverb(self, sent: Tensor, bus: Knobs, spacing: int | None) -> Tensor:
        gains, decays = _room(bus)
        rate = self.layout.sample_rate

        def response(k: int, size: int) -> Tensor:
            return rfft(space.reverb_impulse(gains[:, k], decays[:, k], rate), size)

        wet = convolution.convolve(sent, response, space.reverb_taps(rate), gains.shape[1], spacing)
        if not self.layout.reverb_mix:
            return wet
        share = self._samples(self._control(bus["reverb_mix"][:, None], sent, spacing), sent)
        return share * wet + (1 - share) * sent

    def _echoes(self, sent: Tensor, bus: Knobs, spacing: int | None) -> Tensor:
        time, feedback, damping = (bus[f"echo_{what}"] for what in ("time", "feedback", "damping"))
        longest = next(
            knob.high for knob in self.layout.bus if knob.name == "echo_time"
        )  # not this one: it is on the device
        tail = min(sent.shape[-1], round(space.ECHOES * longest / 1000 * self.layout.sample_rate))

        def response(k: int, size: int) -> Tensor:
            knobs = (time[:, k], feedback[:, k], damping[:, k])
            return space.echo_response(*knobs, size, tail, self.layout.sample_rate)[:, None]

        return convolution.convolve(sent, response, tail, time.shape[-1], spacing)

    @property
    def _step_ms(self) -> float:
        return 1000 * self.hop / self.layout.sample_rate

    def _control(self, knob: Tensor, wave: Tensor, spacing: int | None) -> Tensor:
        """(B, S, K) -> (B, S, T), or (B, S, 1) where nothing moves."""
        return along(knob, -(-wave.shape[-1] // self.hop), self.hop, spacing)

    def _controlled(self, strip: Knobs, wave: Tensor, spacing: int | None) -> Knobs:
        names = ("threshold", "ratio", "knee", "attack", "release", "sibilance_threshold", "sibilance_ratio")
        return {name: self._control(strip[name], wave, spacing) for name in names if name in strip}

    def _gain(self, decibels: Tensor, wave: Tensor, spacing: int | None) -> Tensor:
        return self._samples(_linear(self._control(decibels, wave, spacing)), wave)

    def _samples(self, control: Tensor, wave: Tensor) -> Tensor:
        """(B, S, T) -> (B, S, n), n as of ``wave``."""
        return control if control.shape[-1] == 1 else dynamics.per_sample(control, self.hop, wave.shape[-1])


def equaliser_sections(strip: Knobs, sample_rate: int) -> Tensor:
    """The strip's filters in a row, (B, S, K, sections, 6)."""
    found = [
        filters.coefficients(kind, strip[f"{band}_frequency"], strip[f"{band}_gain"], strip[f"{band}_q"], sample_rate)
        for band, kind in KINDS.items()
        if f"{band}_frequency" in strip
    ]
    if "high_pass_frequency" in strip:
        hertz = strip["high_pass_frequency"]
        flat, q = torch.zeros_like(hertz), torch.full_like(hertz, BUTTERWORTH)
        found.append(filters.coefficients("high_pass", hertz, flat, q, sample_rate))
    return torch.stack(found, dim=-2)


def _room(bus: Knobs) -> tuple[Tensor, Tensor]:
    """Gains in dB and decays in seconds of the reverb's bands, (B, K, 12) each, or (B, K, 1) of all of them."""
    bands = range(1, space.REVERB_BANDS + 1)
    if "reverb_decay" in bus:
        decays = bus["reverb_decay"][..., None]
        return torch.zeros_like(decays), decays
    gains, decays = (torch.stack([bus[f"reverb_{what}_{band}"] for band in bands], -1) for what in ("gain", "decay"))
    return gains, decays


def _linear(decibels: Tensor) -> Tensor:
    return 10 ** (decibels / 20)


@kept_for_all
def _delay(samples: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F,): the response of a delay."""
    turn = torch.arange(size // 2 + 1, dtype=torch.float64) * (-2 * torch.pi * samples / size)
    return torch.polar(torch.ones_like(turn), turn).to(dtype).to(device)
