"""Features are the same inside a model that computes in bfloat16, and what they remember passes gradients."""

import pytest
import torch

from models import features
from models.blocks.precision import full_precision, without_autocast
from models.features import CQT, SIMPLE


def test_autocast_does_not_reach_the_features():
    wave = torch.randn(16000)
    exact = features.log_mel(wave, SIMPLE)
    with torch.autocast("cpu", torch.bfloat16):
        inside = features.log_mel(wave, SIMPLE)
    assert inside.dtype == torch.float32 and torch.equal(inside, exact)


def test_tf32_does_not_reach_what_must_be_exact_and_comes_back_after_it():
    def seen():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = seen()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        assert full_precision(seen)() == ("highest", False) and without_autocast(seen)() == ("high", True) == seen()
        with pytest.raises(ZeroDivisionError):
            full_precision(lambda: 1 // 0)()
        assert seen() == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_what_was_first_computed_while_generating_can_be_trained_through_later():
    spec = features.MelSpec(sample_rate=16000, bands=40, window=512, hop=128)  # nobody else's
    with torch.inference_mode():
        features.mel(torch.randn(4000), spec)
        features.cqt(torch.randn(4000), CQT)
    wave = torch.randn(4000, requires_grad=True)
    (features.mel(wave, spec).sum() + features.cqt(wave, CQT).abs().sum()).backward()
    assert wave.grad is not None and torch.isfinite(wave.grad).all()
