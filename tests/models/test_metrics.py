import pytest
import torch

from models.metrics import accuracy, mean


def test_wilson_interval():
    figure = accuracy(torch.tensor([True] * 81 + [False] * 182))  # 81 of 263: a textbook example (Newcombe 1998)
    assert figure["value"] == pytest.approx(0.3080, abs=1e-4)
    assert (figure["low"], figure["high"]) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


def test_a_perfect_score_is_not_certainty():
    figure = accuracy(torch.ones(100, dtype=torch.bool))
    assert figure["high"] == pytest.approx(1.0) and 0.95 < figure["low"] < 0.97


def test_mean_and_its_interval():
    figure = mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert figure["value"] == 2.5 and figure["high"] - 2.5 == pytest.approx(1.96 * 1.29099 / 2, abs=1e-3)


@pytest.mark.parametrize("figure, values", [(accuracy, torch.zeros(0, dtype=torch.bool)), (mean, torch.ones(1))])
def test_nothing_has_no_figure(figure, values):
    with pytest.raises(ValueError):
        figure(values)
