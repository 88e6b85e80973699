"""Loudness against the Recommendation itself and another meter; the other levels against their definitions."""

import numpy as np
import pyloudnorm
import pytest
from scipy.signal import sosfilt

from data_prep.audio import pcm16
from data_prep.levels import measure
from data_prep.loudness import QUIETEST, integrated, k_weighting, step_powers

RATES = (22050, 24000, 44100, 48000)


def noise(rate: int, seconds: float, level: float, seed: int = 0) -> np.ndarray:
    """int16 (n,)."""
    return pcm16(level * np.random.default_rng(seed).uniform(-1, 1, int(seconds * rate)).astype(np.float32))


def tones(rate: int, *parts: tuple[float, float]) -> np.ndarray:
    """int16 (2, n): a stereo sine of 1 kHz by parts of (dBFS of its peak, seconds)."""
    steps = [np.full(round(seconds * rate), 10 ** (decibels / 20)) for decibels, seconds in parts]
    level = np.concatenate(steps)
    wave = level * np.sin(2 * np.pi * 1000 * np.arange(len(level)) / rate)
    return np.stack([pcm16(wave)] * 2)


def test_the_filters_are_the_printed_ones():
    """ITU-R BS.1770-4, tables 1 and 2."""
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585]
    high_pass = [1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621]
    np.testing.assert_allclose(k_weighting(48000), [shelf, high_pass], atol=1e-10)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("offset", [0, 20000])
def test_blocks_filter_as_single_samples_do(rate, offset):
    """Also beside a constant that is a thousand times as strong, which a filter must forget."""
    tracks = [noise(rate, 2.05, level, seed) + np.int16(offset * seed) for seed, level in enumerate((0.3, 0.001))]
    steps = rate // 10
    for track, powers in zip([*tracks, np.sum(tracks, axis=0, dtype=np.int32)], step_powers(tracks, rate), strict=True):
        weighted = sosfilt(k_weighting(rate), track / 32768)[: 20 * steps]
        np.testing.assert_allclose(powers, np.mean(weighted.reshape(20, steps) ** 2, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(-23, 20)], -23),
        ([(-33, 20)], -33),
        ([(-36, 10), (-23, 60), (-36, 10)], -23),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23),
    ],
)
@pytest.mark.parametrize("rate", [44100, 48000])
def test_a_meter_has_to_show(rate, parts, expected):
    """EBU Tech 3341, cases 1 to 5; the tolerance is theirs."""
    assert measure([tones(rate, *parts)], rate)["lufs"][0] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("rate", RATES)
def test_another_meter_finds_the_same(rate):
    loud, soft = noise(rate, 4, 0.4), noise(rate, 4, 0.02, seed=1)
    for wave in (loud, np.concatenate([soft, loud[: 2 * rate], soft // 8]), np.stack([loud, soft])):
        expected = pyloudnorm.Meter(rate, filter_class="DeMan").integrated_loudness(wave.T / 32768)
        assert measure([wave], rate)["lufs"][0] == pytest.approx(expected, abs=0.006), "recorded to 0.01"


def test_the_sum_is_measured_as_if_it_were_a_track():
    tracks = [noise(44100, 3, 0.2), noise(44100, 3, 0.1, seed=1), np.zeros(3 * 44100, np.int16)]
    together = measure(tracks, 44100, mixed=True)
    alone = measure([*tracks, np.sum(tracks, axis=0, dtype=np.int16)], 44100)
    for name, values in together.items():
        np.testing.assert_array_equal(values, alone[name], err_msg=name)
        assert values.shape == (4,)


@pytest.mark.parametrize("wave", [np.zeros(44100, np.int16), np.ones(44100, np.int16), np.full(4000, 9000, np.int16)])
def test_silence_and_what_is_shorter_than_a_gating_block_are_the_quietest(wave):
    assert measure([wave], 44100)["lufs"][0] == QUIETEST
    assert integrated(np.zeros(0)) == QUIETEST


def test_a_block_is_silent_by_its_rms():
    """Blocks whose peaks say it at once, and those just above and just under the threshold, whose peaks say nothing."""
    block = 2205
    levels = [0, 10, 32, 33, 3000]
    wave = np.concatenate([np.tile([level, -level], block)[:block] for level in levels]).astype(np.int16)
    wave = np.concatenate(
        [wave, np.eye(1, block, dtype=np.int16)[0] * 1500, np.eye(1, block, dtype=np.int16)[0] * 1600]
    )
    found = measure([wave], 44100)
    assert found["silence"][0] == np.float32(4 / 7), "RMS of 0, 10, 32 and 31.9, below 32.8"
    assert found["peak"][0] == pytest.approx(20 * np.log10(3000 / 32768))


@pytest.mark.parametrize("at", [100, -1])
def test_the_largest_sample_may_be_negative_and_the_last(at):
    wave = np.zeros(10000, np.int16)
    wave[at] = -32768
    assert measure([wave], 44100)["peak"][0] == 0


@pytest.mark.parametrize(("gain", "level"), [(1.0, 32767), (0.5, 16384)])
def test_clipping_is_three_samples_at_what_was_full_scale(gain, level):
    wave = noise(44100, 1, 0.3 * gain)
    for start, length in ((100, 2), (200, 3), (300, 50)):
        wave[start : start + length] = level
    wave[400:404] = -level
    assert measure([wave], 44100, gain)["clipped"][0] == 3
