"""One mel: its framing, its scale, its bits; and the way back to a waveform."""

import math

import numpy as np
import pytest
import torch

from models.features import AUDIOLDM2, SIMPLE, log_mel, mel, waveform

SPECS = pytest.mark.parametrize("spec", [SIMPLE, AUDIOLDM2], ids=["simple", "audioldm2"])


def tone(hertz: float, samples: int, spec=SIMPLE) -> torch.Tensor:
    at = torch.arange(samples, dtype=torch.float64) / spec.sample_rate
    return 0.1 * sum(torch.sin(2 * math.pi * hertz * k * at) / k for k in range(1, 6))


@SPECS
def test_frames_count_hops(spec):
    assert log_mel(torch.randn(2, 3, 40 * spec.hop + 7), spec).shape == (2, 3, spec.bands, 40)
    assert log_mel(torch.randn(40 * spec.hop + 2 * spec.margin), spec, context=True).shape == (spec.bands, 40)


def test_the_shapes_of_the_paper():
    assert log_mel(torch.zeros(5120), SIMPLE).shape == (128, 10)
    assert log_mel(torch.zeros(64000), AUDIOLDM2).shape == (64, 400)


@SPECS
def test_context_and_mirror_agree_inside(spec):
    wave = torch.randn(60 * spec.hop, dtype=torch.float64)
    inside = log_mel(wave, spec)[:, 10:50]
    cut = wave[10 * spec.hop - spec.margin : 50 * spec.hop + spec.margin]
    torch.testing.assert_close(log_mel(cut, spec, context=True), inside)


@SPECS
def test_scale_and_floor(spec):
    wave = tone(440, 8000, spec)
    torch.testing.assert_close(mel(3 * wave, spec), 3 * mel(wave, spec))
    assert log_mel(torch.zeros(8000), spec).unique().item() == pytest.approx(math.log(spec.floor))


def test_against_torchaudio_on_its_own_framing():
    from torchaudio.transforms import MelSpectrogram

    wave = torch.randn(16000)
    theirs = MelSpectrogram(
        16000, 1024, 1024, 512, 0.0, 8000.0, n_mels=128, power=1.0, norm="slaney", mel_scale="slaney", center=False
    )
    torch.testing.assert_close(mel(wave, SIMPLE, context=True), theirs(wave), rtol=1e-4, atol=1e-5)


def test_a_tone_is_loudest_in_its_band():
    bank = [log_mel(tone(hertz, 8000).float(), SIMPLE)[:, 4].argmax().item() for hertz in (200, 400, 800, 1600, 3200)]
    assert bank == sorted(set(bank))


def test_bits_do_not_depend_on_the_batch():
    """Double precision rounded to single: the order of additions does not reach the last bit."""
    waves = torch.randn(40, 5632, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = log_mel(waves, SIMPLE, context=True).float()
    alone = torch.stack([log_mel(wave, SIMPLE, context=True).float() for wave in waves])
    assert torch.equal(together, alone)


@SPECS
def test_griffin_lim_brings_the_pitch_back(spec):
    wave = tone(440, 8192, spec).float()
    rebuilt = waveform(log_mel(wave, spec), spec)
    assert rebuilt.shape == (len(wave) // spec.hop * spec.hop,)
    assert torch.equal(rebuilt, waveform(log_mel(wave, spec), spec)), "the same mel gives the same waveform"
    spectrum = np.abs(np.fft.rfft(rebuilt.numpy() * np.hanning(len(rebuilt))))
    peak = spectrum.argmax() * spec.sample_rate / len(rebuilt)
    assert peak == pytest.approx(440, rel=0.04)
    assert (log_mel(rebuilt, spec) - log_mel(wave, spec)).abs().mean() < 0.7
    batch = waveform(log_mel(torch.stack([wave, 0.5 * wave]), spec), spec)
    assert batch.shape == (2, len(rebuilt))


def test_too_short_to_mirror_is_said():
    with pytest.raises(ValueError, match="too short"):
        log_mel(torch.zeros(100), SIMPLE)
