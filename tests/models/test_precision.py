"""Features are the same inside a model that computes in bfloat16, and what they remember passes gradients."""

import torch

from models import features
from models.features import CQT, SIMPLE


def test_autocast_does_not_reach_the_features():
    wave = torch.randn(16000)
    exact = features.log_mel(wave, SIMPLE)
    with torch.autocast("cpu", torch.bfloat16):
        inside = features.log_mel(wave, SIMPLE)
    assert inside.dtype == torch.float32 and torch.equal(inside, exact)


def test_what_was_first_computed_while_generating_can_be_trained_through_later():
    spec = features.MelSpec(sample_rate=16000, bands=40, window=512, hop=128)  # nobody else's
    with torch.inference_mode():
        features.mel(torch.randn(4000), spec)
        features.cqt(torch.randn(4000), CQT)
    wave = torch.randn(4000, requires_grad=True)
    (features.mel(wave, spec).sum() + features.cqt(wave, CQT).abs().sum()).backward()
    assert wave.grad is not None and torch.isfinite(wave.grad).all()
