"""One mel: its framing, its scale, its bits; and the way back to a waveform."""

import math

import numpy as np
import pytest
import torch

from models import features
from models.features import AUDIOLDM2, CQT, SIMPLE, cqt, log_cqt, log_mel, mel, waveform
from tests.models.helpers import Waits

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


# --- constant-Q transform -----------------------------------------------------------------------------------------------------------


def music(seconds: float, seed: int = 0) -> np.ndarray:
    """Notes with partials and decays, and a little noise: what a CQT is made for."""
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * 22050)) / 22050
    wave = 1e-3 * rng.standard_normal(len(at))
    for start in np.arange(0, seconds, 0.25):
        pitch = 440 * 2 ** ((rng.integers(28, 90) - 69) / 12)
        decay = np.where(at >= start, np.exp(-3 * (at - start)), 0.0)
        wave += 0.1 * decay * sum(np.sin(2 * np.pi * pitch * k * at) / k for k in (1, 2, 3) if pitch * k < 10000)
    return wave


def test_the_cqt_is_librosas():
    """Closer than nnAudio's, whose magnitudes are within 2.8 %. librosa decimates and prunes its wavelets, ours does neither."""
    import librosa

    wave = music(5.0)
    theirs = librosa.cqt(wave, sr=22050, hop_length=64, n_bins=84, bins_per_octave=12, fmin=CQT.f_min)
    ours = cqt(torch.from_numpy(wave)).numpy()
    assert ours.shape == theirs.shape == (84, 1723)
    assert np.abs(np.abs(ours) - np.abs(theirs)).sum() / np.abs(theirs).sum() < 0.015
    assert np.abs(ours - theirs).sum() / np.abs(theirs).sum() < 0.028, "phases too"
    loud = np.abs(theirs) > 0.1 * np.abs(theirs).max()
    assert np.median(np.abs(np.abs(ours) / np.abs(theirs) - 1)[loud]) < 0.005


def test_the_cqt_is_the_sum_that_defines_it():
    """Wavelet by wavelet, sample by sample, also at both ends; of noise, which excites every bin by about 1."""
    wave = torch.randn(22050, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = cqt(wave)
    for k, (hertz, length) in enumerate(zip(CQT.frequencies, CQT.lengths, strict=True)):
        if k not in (0, 40, 83):
            continue
        at = torch.arange(math.floor(-length / 2), math.floor(length / 2))
        window = torch.hann_window(len(at), dtype=torch.float64)
        atom = torch.polar(math.sqrt(length) * window / window.sum(), -2 * math.pi * hertz / 22050 * at.double())
        for frame in (0, 100, 344):
            where = at + 64 * frame
            inside = (where >= 0) & (where < len(wave))
            direct = (wave[where[inside]] * atom[inside]).sum()
            assert abs(found[k, frame] - direct) < 2e-3


def test_a_tone_is_loudest_in_its_cqt_bin_and_as_loud_as_it_should_be():
    at = torch.arange(44100, dtype=torch.float64) / 22050
    for k in (0, 17, 45, 83):
        found = cqt(torch.sin(2 * math.pi * CQT.frequencies[k] * at))[:, 340].abs()
        assert found.argmax() == k
        assert found[k] == pytest.approx(math.sqrt(CQT.lengths[k]) / 2, rel=0.002)


def test_the_cqt_of_any_length_and_batch(monkeypatch):
    """A long recording in chunks is the same as at once; a batch the same as one by one; gradients pass."""
    wave = torch.from_numpy(music(5.0))
    whole = cqt(wave)
    monkeypatch.setattr(features, "CQT_CHUNK", 500)
    torch.testing.assert_close(cqt(wave), whole, rtol=0, atol=1e-4)
    assert whole.shape == (84, 1723)
    assert [cqt(wave[:n]).shape[-1] for n in (1, 63, 64, 6399, 6400)] == [1, 1, 2, 100, 101]
    later = cqt(wave[64 * 900 :])
    torch.testing.assert_close(later[:, 100:], whole[:, 1000:], rtol=0, atol=1e-4)
    pair = torch.stack([wave[:40000], wave[50000:90000]])
    torch.testing.assert_close(cqt(pair), torch.stack([cqt(each) for each in pair]))
    leaf = pair.float().requires_grad_()
    log_cqt(leaf).square().mean().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().max() > 0


def test_log_cqt_is_magnitude_and_phase():
    wave = torch.from_numpy(music(1.0))
    found, transform = log_cqt(wave), cqt(wave)
    assert found.shape == (2, 84, 345)
    torch.testing.assert_close(found[0].exp() * torch.exp(1j * found[1]), transform, atol=2e-4, rtol=0)
    silent = log_cqt(torch.zeros(22050))
    assert silent[0].unique().item() == pytest.approx(math.log(1e-4))
    assert not silent[1].any()


def test_a_cqt_does_not_make_the_host_wait_for_the_device():
    wave = torch.zeros(2, 4000)
    cqt(wave)  # its wavelets are made once
    with Waits() as waits:
        cqt(wave)
    assert waits.found == set()


def test_a_failed_cqt_is_an_error_and_never_zeros():
    strange = (torch.tensor([0.0] * 1999 + [float("nan")]), torch.full((1000,), float("inf")))
    for wave in (torch.zeros(0), *strange):
        with pytest.raises(ValueError, match="finite numbers"):
            log_cqt(wave)
    with pytest.raises(ValueError, match="finite numbers"):
        cqt(torch.zeros(0))
    assert all(cqt(wave).isnan().all() for wave in strange)
    assert cqt(torch.ones(1)).shape == (84, 1)
