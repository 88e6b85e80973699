import pytest
import torch

from models.metrics import accuracy, frechet_distance, mean, ratio_of_means, si_sdr


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


def test_a_ratio_of_pairs_is_narrow_where_pairs_go_together():
    base = torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0])
    same = ratio_of_means(1.5 * base, base)
    assert same == pytest.approx({"value": 1.5, "low": 1.5, "high": 1.5, "count": 5})
    apart = ratio_of_means(1.5 * base.flip(0), base)
    assert apart["value"] == 1.5 and apart["low"] < 1.1 and apart["high"] > 2
    with pytest.raises(ValueError, match="two pairs"):
        ratio_of_means(base[:1], base[:1])


def test_si_sdr_by_hand_and_whatever_the_scale():
    target, noise = torch.tensor([3.0, 0.0, 4.0, 0.0]), torch.tensor([0.0, 0.5, 0.0, 0.0])
    assert float(si_sdr(target + noise, target)) == pytest.approx(20)  # 25 over a quarter
    assert float(si_sdr(-7 * (target + noise), target)) == pytest.approx(20, abs=1e-4)


def test_frechet_distance_of_gaussians_in_closed_form():
    """For independent dimensions it is the sum of squared differences of means and of deviations."""
    random = torch.Generator().manual_seed(0)
    base = torch.linalg.qr(torch.randn(500, 4, generator=random)).Q
    base = base - base.mean(0)
    base = torch.linalg.qr(base).Q * 499**0.5  # mean 0 and covariance 1, exactly
    mean, scale = torch.tensor([1.0, 0.0, -2.0, 0.5]), torch.tensor([2.0, 1.0, 0.5, 3.0])
    expected = float(mean.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(base, base * scale + mean) == pytest.approx(expected, rel=1e-5)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=random)).Q
    assert frechet_distance(base @ turn, (base * scale + mean) @ turn) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_is_zero_of_itself_symmetric_and_stable_without_full_rank():
    random = torch.Generator().manual_seed(0)
    few, other = torch.randn(5, 64, generator=random), 1e3 * torch.randn(7, 64, generator=random)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, other) == pytest.approx(frechet_distance(other, few), rel=1e-9)
    assert frechet_distance(torch.zeros(3, 2), torch.ones(3, 2)) == pytest.approx(2)
    with pytest.raises(ValueError):
        frechet_distance(few[:1], other)
