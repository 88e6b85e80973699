"""Transforms with cheap gradients: torch's values to the bit, and the gradients of finite differences."""

import pytest
import torch

from models.blocks import fourier


def drawn(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("size", [24, 25, 30, 17])
def test_a_transform_is_torchs_with_the_gradient_of_finite_differences(size):
    """Filled up and cut, even and odd."""
    wave = drawn(2, 25)
    assert torch.equal(fourier.rfft(wave, size), torch.fft.rfft(wave, size))
    leaf = drawn(2, 25, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda x: fourier.rfft(x, size), leaf)
    torch.autograd.gradgradcheck(lambda x: fourier.rfft(x, size).abs().square(), leaf)


@pytest.mark.parametrize("size", [8, 9])
def test_powers_are_those_of_the_transform(size):
    frames = drawn(3, size, dtype=torch.float64).requires_grad_()
    assert torch.allclose(fourier.powers(frames), torch.fft.rfft(frames).abs().square())
    torch.autograd.gradcheck(fourier.powers, frames)


@pytest.mark.parametrize(("length", "hop"), [(40, 4), (43, 4), (40, 5), (31, 16), (12, 3)])
def test_frames_pass_their_gradients_to_every_sample_that_they_hold(length, hop):
    """Hops that divide the window and one that does not; samples behind the last frame."""
    window, wave = torch.hann_window(12, dtype=torch.float64), drawn(2, length, dtype=torch.float64).requires_grad_()
    found = fourier.windowed(wave, window, hop)
    assert torch.equal(found, wave.unfold(-1, 12, hop) * window)
    torch.autograd.gradcheck(lambda x: fourier.windowed(x, window, hop), wave)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_an_stft_is_torchs(mode):
    wave, window = drawn(2, 3, 500), torch.hann_window(64)
    theirs = torch.stft(wave.flatten(0, 1), 64, 16, window=window, return_complex=True, pad_mode=mode)
    assert torch.equal(fourier.stft(wave, window, 16, mode).transpose(-1, -2).flatten(0, 1), theirs)


def test_fast_sizes_hold_what_they_are_for_and_hardly_more():
    for samples in (1, 2, 7, 127, 128, 5000, 82752, 120484, 262144, 592213):
        size = fourier.fast_size(samples)
        assert samples <= size <= 1.12 * samples + 1
        for factor in (2, 3, 5):
            while size % factor == 0:
                size //= factor
        assert size == 1
    assert fourier.fast_size(120484) == 122880
