"""The console: every knob's gradient against finite differences, the demo's own chain, nothing late, nothing that clicks."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.signal import sosfreqz
from torch.utils._python_dispatch import TorchDispatchMode

from data_prep.demo_vocals import STYLE
from data_prep.effects import Band, biquad, process
from models.blocks.console import convolution, dynamics, filters, space
from models.blocks.console.console import Console, equaliser_sections
from models.blocks.console.layout import Layout
from models.blocks.console.settings import along, from_turns, named, start_settings, to_turns
from tests.models.helpers import Waits

RATE = 48000
EVERYTHING = Layout(sample_rate=RATE, tracks=2, high_pass=True, de_esser=True, echo=True)
VOICE = Layout(sample_rate=RATE, fader=False, high_pass=True, reverb_mix=False, master=False, softest_knee=0)


def bursts(samples, tracks=1, seed=0):
    """(1, tracks, n) noise that comes and goes, so that attack and release both have to do."""
    random = torch.Generator().manual_seed(seed)
    loud = 0.05 + 0.6 * (torch.arange(samples) // 1200 % 2)
    return (torch.randn(1, tracks, samples, generator=random) * loud * 0.3).double()


def busy(layout, batch=1):
    """Settings away from every start, so that no knob is without effect."""
    found = {}
    for number, (name, section) in enumerate(layout.sections.items()):
        strips = layout.tracks if name == "track" else 1
        draws = torch.rand(batch, strips, 1, len(section), generator=torch.Generator().manual_seed(number)).double()
        values = from_turns(0.25 + 0.5 * draws, section)
        chosen = {"threshold": -24.0, "sibilance_threshold": -50.0, "gain": 2.0, "output_gain": -3.0}
        chosen |= {"reverb_send": -3.0, "echo_send": -3.0, "knee": 10.0, "echo_time": 60.0, "reverb_mix": 0.6}
        chosen |= {f"reverb_decay_{band}": 0.5 + 0.1 * band for band in range(1, 13)}
        for i, knob in enumerate(section):
            if knob.name in chosen:
                values[..., i] = chosen[knob.name]
        found[name] = values
    return found


def test_every_knob_has_the_gradient_of_finite_differences(monkeypatch):
    monkeypatch.setattr(
        space, "SECONDS", 0.2
    )  # a test of seconds: a short reverb, and filters that may ring a little round
    monkeypatch.setattr("models.blocks.console.console.RINGING", 0.15)
    layout = EVERYTHING.layout(33000)  # no other test's, since the noise is kept by rate
    console, settings, wave = Console(layout), busy(layout), bursts(6000, 2)
    probe = torch.randn(1, 2, 6000, generator=torch.Generator().manual_seed(5)).double()

    def heard(turns):
        chosen = {name: from_turns(turns[name], section) for name, section in layout.sections.items()}
        return (console(wave, chosen).mix * probe).sum()

    turns = {n: to_turns(settings[n], s).requires_grad_() for n, s in layout.sections.items()}
    heard(turns).backward()
    checked = 0
    for name, section in layout.sections.items():
        for i, knob in enumerate(section):
            ends = []
            for step in (-1e-7, 1e-7):
                moved = {n: t.detach().clone() for n, t in turns.items()}
                moved[name][0, 0, 0, i] += step
                with torch.no_grad():
                    ends.append(heard(moved))
            slope = float(ends[1] - ends[0]) / 2e-7
            found = float(turns[name].grad[0, 0, 0, i])
            assert slope != 0, f"{name}.{knob.name} does nothing"
            assert found == pytest.approx(slope, rel=2e-3, abs=1e-6), f"{name}.{knob.name}"
            checked += 1
    assert checked == 32 + 28 + 26


def test_the_demos_chain_is_one_of_the_consoles():
    """data_prep/effects.py and the console are written apart: with the same settings they differ by the noise of their reverbs alone."""
    settings = dataclasses.replace(STYLE, reverb_send=-200.0, pan=0.1)
    voice = bursts(2 * RATE)[0, 0]
    theirs = process(voice.numpy(), settings, RATE, 0, 0.0)
    chosen = start_settings(VOICE)
    section = VOICE.track
    wanted = {
        "threshold": -26.0,
        "ratio": 4.0,
        "attack": 8.0,
        "release": 120.0,
        "knee": 0.0,
        "make_up": 5.0,
        "pan": 0.1,
    }
    wanted |= {"high_pass_frequency": 90.0, "peak_1_frequency": 300.0, "peak_1_gain": -3.0, "peak_1_q": 1.0}
    wanted |= {"peak_2_frequency": 3500.0, "peak_2_gain": 4.0, "peak_2_q": 0.9, "reverb_send": -80.0}
    wanted |= {"high_shelf_frequency": 9000.0, "high_shelf_gain": 4.0, "high_shelf_q": 0.7}
    for i, knob in enumerate(section):
        if knob.name in wanted:
            chosen["track"][..., i] = wanted[knob.name]
    ours = Console(VOICE)(voice[None, None], {n: v.double() for n, v in chosen.items()}).mix[0].numpy()
    apart = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
    assert apart < 0.01, (
        "-40 dB; what is left is half a sample in the compressor's control and 1 % of Q of the high-pass"
    )


def drawn_sections(dtype):
    """Six equalisers with a high-pass; the first four have the narrowest bands at the ends of their ranges, raised and lowered."""
    turns = torch.rand(6, 1, 1, len(VOICE.track), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for i, knob in enumerate(VOICE.track):
        kind = knob.name.rpartition("_")[2]
        ends = {"q": (1, 1, 1, 1), "frequency": (0, 0, 1, 1), "gain": (0, 1, 0, 1)}.get(kind)
        if ends is not None:
            turns[:4, 0, 0, i] = torch.tensor(ends, dtype=torch.float64)
    return equaliser_sections(named(from_turns(turns, VOICE.track).to(dtype), VOICE.track), RATE)


@pytest.mark.parametrize("size", [3000, 16001, 165000])
def test_filters_are_the_cookbooks_at_every_frequency_of_an_fft(size):
    """Interpolated where they are smooth: -110 dB from the response itself; in single precision -80 dB."""
    omega = torch.arange(size // 2 + 1).double() * 2 * torch.pi / size
    exact = filters.cascade(drawn_sections(torch.float64), omega)

    def apart(found):
        return 20 * float(((found - exact).abs().amax(-1) / exact.abs().amax(-1)).max().clamp(min=1e-12).log10())

    assert apart(filters.sampled(drawn_sections(torch.float64), size)) < -110
    assert apart(filters.sampled(drawn_sections(torch.float32), size).to(torch.complex128)) < -80
    stretches = filters.stretches(size // 2 + 1)
    assert [s.first for s in stretches[1:]] == [s.first + s.length for s in stretches[:-1]]
    assert sum(s.length for s in stretches) == size // 2 + 1


def test_each_kind_of_filter_is_the_cookbooks():
    omega = torch.linspace(0.001, 3.13, 50).double()
    hertz, q = (torch.tensor(value, dtype=torch.float64) for value in (2500.0, 0.9))

    def response(kind, decibels):
        gain = torch.tensor(decibels, dtype=torch.float64)
        return filters.cascade(filters.coefficients(kind, hertz, gain, q, RATE)[None], omega)

    for kind in ("high_pass", "peak", "high_shelf"):
        _, theirs = sosfreqz(biquad(Band(kind, 2500.0, 7.0, 0.9), RATE)[None], omega.numpy())
        np.testing.assert_allclose(response(kind, 7.0).abs().numpy(), np.abs(theirs), rtol=1e-9)
    # a low shelf is a high shelf of the opposite gain, made louder by that
    assert torch.allclose(response("low_shelf", 7.0), 10 ** (7 / 20) * response("high_shelf", -7.0))


class Wide(TorchDispatchMode):
    """Notes what makes a number of double precision."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if torch.is_tensor(tensor) and tensor.dtype in (torch.float64, torch.complex128):
                self.found.add(str(function))
        return result


def test_single_precision_is_enough_and_nothing_wider_is_needed():
    """So it runs where there is no double precision (Apple's MPS). The error against double precision is the figure in the README."""
    console, wave, settings = Console(EVERYTHING), bursts(60000, 2), busy(EVERYTHING)
    moving = {n: (v if n == "bus" else torch.cat([v, 1.02 * v], dim=2)) for n, v in settings.items()}
    exact = console(wave, moving, spacing=24000).mix
    single = {n: v.float() for n, v in moving.items()}
    console(wave.float(), single, spacing=24000)  # tables are made once, and in double precision
    with Wide() as wide:
        found = console(wave.float(), single, spacing=24000).mix
    assert found.dtype == torch.float32 and wide.found == set()
    error = 20 * float(((found - exact).abs().max() / exact.abs().max()).log10())
    assert error < -70, error


@pytest.mark.parametrize("spacing", [None, 12000])
def test_no_rendering_makes_the_host_wait_for_the_device(spacing):
    settings = {n: v.expand(-1, -1, 3 if spacing and n != "bus" else 1, -1) for n, v in busy(EVERYTHING).items()}
    console, wave = Console(EVERYTHING), bursts(30000, 2)
    console(wave, settings, spacing)  # tables are made once
    leaves = {n: v.clone().requires_grad_() for n, v in settings.items()}
    with Waits() as waits:
        console(wave, leaves, spacing).mix.square().mean().backward()
    assert waits.found == set()


def test_a_reverb_is_as_loud_as_its_send_and_as_long_as_its_decay():
    gains, decays = torch.zeros(1, 12), torch.full((1, 12), 1.2)
    impulse = space.reverb_impulse(gains, decays, RATE)[0]
    assert torch.allclose(impulse.square().sum(-1), torch.ones(2), atol=1e-4)
    early, late = (impulse[:, at : at + 4800].square().mean().log10() * 10 for at in (0, 28800))
    assert float(early - late) == pytest.approx(60 * 0.6 / 1.2, abs=1)
    assert abs(float((impulse[0] * impulse[1]).sum())) < 0.05, "left and right are independent"
    assert torch.equal(impulse, space.reverb_impulse(gains, decays, RATE)[0]), "the noise is drawn once for ever"


def test_settings_that_move_but_are_equal_change_nothing():
    console, wave = Console(EVERYTHING), bursts(50000, 2)
    settings = busy(EVERYTHING)
    still = console(wave, settings).mix
    several = {n: (v if n == "bus" else v.expand(-1, -1, 5, -1)) for n, v in settings.items()}
    assert torch.allclose(console(wave, several, spacing=12000).mix, still, atol=1e-9)
    with pytest.raises(ValueError, match="spacing"):
        console(wave, several)


def test_knobs_move_in_straight_lines_and_hold_after_the_last_setting():
    found = along(torch.tensor([0.0, 3.0, 0.0, 6.0]), 14, 10, 30)
    expected = torch.tensor([0, 1, 2, 3, 2, 1, 0, 2, 4, 6, 6, 6, 6, 6]).float()
    assert torch.allclose(found, expected)
    still = torch.tensor([2.0])
    assert along(still, 14, 10, None) is still


def test_a_long_signal_is_the_same_in_blocks(monkeypatch):
    console, wave, settings = Console(VOICE), bursts(120000), busy(VOICE)
    whole = console(wave, settings).mix
    monkeypatch.setattr(convolution, "BLOCK", 7000)
    assert torch.allclose(console(wave, settings).mix, whole, atol=1e-9)


def test_moving_settings_do_not_click():
    """A tone whose gain and equaliser move stays a tone: nothing beside it rises above -60 dB."""
    time = torch.arange(2 * RATE).double() / RATE
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time)[None, None]
    settings = start_settings(VOICE)
    moving = {n: v.double() for n, v in settings.items()}
    track = moving["track"].expand(-1, -1, 5, -1).clone()
    for i, knob in enumerate(VOICE.track):
        if knob.name == "reverb_send":
            track[..., i] = -80.0
        if knob.name in ("peak_1_gain", "make_up"):
            track[0, 0, :, i] = torch.tensor([0.0, 4.0, 0.0, 4.0, 0.0])
    mix = Console(VOICE)(tone, {"track": track, "bus": moving["bus"]}, spacing=RATE // 2).mix[
        0, 0, RATE // 4 : -RATE // 4
    ]
    spectrum = torch.fft.rfft(mix * torch.hann_window(len(mix), dtype=mix.dtype)).abs()
    hertz = torch.fft.rfftfreq(len(mix), 1 / RATE)
    beside = spectrum[(hertz - 440).abs() > 200].max()
    assert 20 * float(torch.log10(beside / spectrum.max())) < -60


def test_nothing_is_delayed():
    click = torch.zeros(1, 1, 20000).double()
    click[..., 5000] = 0.5
    settings = {n: v.double() for n, v in start_settings(Layout(sample_rate=RATE)).items()}
    settings["track"][..., -1] = -80.0
    mix = Console(Layout(sample_rate=RATE))(click, settings).mix
    assert mix[0, 0].abs().argmax() == 5000
    assert mix[..., :5000].abs().max() < 1e-9


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("length", [1, 16, 700])
@pytest.mark.parametrize(
    ("attack", "release"), [(1.0, 40.0), (8.0, 120.0), (5.0, 250.0), (250.0, 10.0), (0.02, 3000.0)]
)
def test_smoothing_is_the_recursion(attack, release, length, moving):
    """Also where the two change places along the way, and where the level hardly moves, so that many steps depend on one another."""
    wanted = 20 * torch.rand(4, 700, generator=torch.Generator().manual_seed(1)).double()
    wanted[:, 200:400] = 0.0
    wanted[3] = 12 + 0.3 * torch.sin(torch.arange(700) / 40).double() * (torch.arange(700) % 3)
    wanted = wanted[:, :length]
    times = [torch.full((4, 1), ms, dtype=torch.float64) for ms in (attack, release)]
    if moving:
        along_way = torch.linspace(0, 1, length, dtype=torch.float64)
        times = [a + (b - a) * along_way for a, b in zip(times, reversed(times), strict=True)]
    found = dynamics.smoothed(wanted, *times, 1.0)
    rises, falls = (np.broadcast_to(np.exp(-1 / ms.numpy()), wanted.shape) for ms in times)
    for row, result, rise, fall in zip(wanted.tolist(), found, rises, falls, strict=True):
        now, by_hand = 0.0, []
        for target, up, down in zip(row, rise, fall, strict=True):
            keep = up if target > now else down
            now = keep * now + (1 - keep) * target
            by_hand.append(now)
        np.testing.assert_allclose(result.numpy(), by_hand, rtol=1e-6, atol=1e-9)


def test_the_release_is_respected():
    level = torch.full((1, 1000), -60.0).double()
    level[:, 100:300] = -10.0
    knobs = {"threshold": -30.0, "ratio": 4.0, "knee": 0.0, "attack": 10.0}
    knobs = {name: torch.tensor(value).double() for name, value in knobs.items()}
    reductions = [
        dynamics.compressor_reduction(level, knobs | {"release": torch.tensor(ms).double()}, 1.0)[0]
        for ms in (50.0, 200.0)
    ]
    for ms, reduction in zip((50, 200), reductions, strict=True):
        assert float(reduction[299]) == pytest.approx(15, abs=0.01)
        assert float(reduction[299 + ms] / reduction[299]) == pytest.approx(np.exp(-1), abs=0.01)


def test_a_de_esser_holds_sibilance_and_nothing_else():
    time = torch.arange(RATE).double() / RATE
    layout = Layout(sample_rate=RATE, fader=False, de_esser=True, reverb_mix=False, master=False)
    chosen = {n: v.double() for n, v in start_settings(layout).items()}
    for i, knob in enumerate(layout.track):
        chosen["track"][..., i] = {"sibilance_threshold": -40.0, "sibilance_ratio": 10.0, "threshold": 0.0, "make_up": 0.0,
                                   "reverb_send": -80.0}.get(knob.name, knob.start)  # fmt: skip
    for hertz, lowest, highest in ((300, -0.2, 0.2), (9000, -30, -12)):
        tone = 0.2 * torch.sin(2 * torch.pi * hertz * time)[None, None]
        out = Console(layout)(tone, chosen).mix[0, 0, RATE // 2 :]
        change = 20 * float(torch.log10(out.std() * 2**0.5 / tone[..., RATE // 2 :].std()))
        assert lowest <= change <= highest


def test_echoes_come_when_they_are_said_to():
    knobs = [torch.tensor([value]).double() for value in (100.0, 0.5, 12000.0)]
    size = 1 << 16
    impulse = torch.fft.irfft(space.echo_response(*knobs, size, size // 2, RATE), size)[0]
    peaks = [int(impulse[at - 100 : at + 200].abs().argmax()) + at - 100 for at in (4800, 9600, 14400)]
    assert all(abs(peak - at) <= 3 for peak, at in zip(peaks, (4800, 9600, 14400), strict=True))
    assert impulse[size // 2 + 4000 :].abs().max() < 1e-6, "what does not fit is left out, not folded"


def test_turns_and_values_are_each_others_inverse():
    for section in EVERYTHING.sections.values():
        turns = torch.rand(3, len(section), generator=torch.Generator().manual_seed(2)).double()
        values = from_turns(turns, section)
        assert torch.allclose(to_turns(values, section), turns, atol=1e-6)
        for knob, value in named(values, section).items():
            wanted = next(k for k in section if k.name == knob)
            assert ((value >= wanted.low) & (value <= wanted.high)).all()


def test_the_papers_console_has_its_knobs():
    assert {name: len(section) for name, section in Layout(sample_rate=44100).sections.items()} == {
        "track": 27,
        "bus": 25,
        "master": 26,
    }
