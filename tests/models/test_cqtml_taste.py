"""What CQTML learns of taste: judges, the reward's symmetry and calibration, GRPO, and the alarm for a reward that is exploited."""

import pytest
import torch
from torch import nn

from models.cqtml.brightness import divergence, log_probability, to_frames
from models.cqtml.config import RewardShape
from models.cqtml.data import typical_data
from models.cqtml.grpo import clipped_objective, group_advantage
from models.cqtml.judge import SCRIPTED, correlation
from models.cqtml.music import band_onsets, taught
from models.cqtml.taste import Taste, calibration_error, preference_loss
from pipeline.errors import UserError
from tests.models.cqtml_data import DATA, heard
from tests.models.helpers import PlainEngine, build, load, train


def test_the_judge_prefers_lights_that_follow_and_do_not_flicker():
    cqt = heard(2, 862)
    onsets = band_onsets(cqt[:, 0]).mean(1)
    right = taught(cqt, 0.15)
    noise = to_frames(torch.rand(2, 4, 54), 862)
    dark = torch.zeros_like(right)
    scores = SCRIPTED.score(torch.stack([right, right.roll(1, 0), noise, dark], 1), onsets)
    assert (scores[:, :1] > scores[:, 1:] + 0.2).all()
    assert (scores[:, 3] == 0).all() and correlation(torch.ones(5), torch.arange(5.0)) == 0


def test_order_of_the_sides_cannot_count():
    first, second, choice = torch.randn(50), torch.randn(50), torch.rand(50)
    assert torch.allclose(preference_loss(first, second, choice), preference_loss(second, first, 1 - choice))
    torch.manual_seed(0)
    taste = Taste(RewardShape(width=16), DATA).eval()
    cqt, lights = heard(), torch.rand(2, 2, 4, 128)
    assert torch.allclose(taste(cqt, lights).flip(1), taste(cqt, lights.flip(1)), atol=1e-6)
    assert torch.allclose(taste(cqt, lights)[:, :1], taste(cqt, lights[:, :1]), atol=1e-6)


def test_calibration_is_measured():
    happened = (torch.arange(1000) % 10 < 8).float()
    assert calibration_error(torch.full((1000,), 0.8), happened) < 1e-5
    assert calibration_error(torch.full((1000,), 0.99), happened) == pytest.approx(0.19, abs=1e-5)


def test_a_reward_refuses_too_few_comparisons():
    config = load("cqtml_demo_reward")
    info = typical_data(config) | {"samples": {"train": 57, "valid": 5, "test": 5}, "of": "cqtml_demo/1f3a9c2e"}
    from models.cqtml.reward.train_module import TrainModule

    for pairs, more in ((300, "$"), (60, "; more pairs .*generate.py cqtml_demo/1f3a9c2e --pairs N")):
        with pytest.raises(UserError, match=rf"57 comparisons.*asks for 200.*compare.py cqtml_demo/1f3a9c2e{more}"):
            TrainModule(config, info | {"pairs": {"train": pairs}})


def test_advantages_and_the_clipped_ratio():
    advantage = group_advantage(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    assert torch.allclose(advantage, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), atol=1e-3)
    drawn = torch.zeros(1, 2, 4, 3)
    now = torch.full_like(drawn, 0.5).requires_grad_()  # ratio 1.65, beyond 1.2
    objective, clipped = clipped_objective(now, drawn, torch.tensor([[1.0, -1.0]]), 0.2)
    objective.backward()
    assert float(objective.detach()) == pytest.approx((1.2 - 1.6487) / 2, abs=1e-3) and float(clipped) == 1.0
    assert (now.grad[:, 0] == 0).all() and (now.grad[:, 1] < 0).all()


def test_the_temperature_counts_once():
    logits, levels = torch.randn(1, 4, 6, 2), torch.randint(0, 6, (1, 3, 4, 2))
    assert torch.allclose(log_probability(logits, levels, 2.0), log_probability(logits / 2, levels, 1.0))
    assert divergence(logits, logits, 0.7).abs().max() < 1e-6
    assert torch.allclose(divergence(logits, logits + 3, 1.0), torch.zeros(1, 4, 2), atol=1e-5)


class Exploitable(nn.Module):
    """A planted reward that has nothing to do with the music: flicker pays."""

    def forward(self, cqt, lights):
        return 20 * lights[..., ::16].diff(n=2, dim=-1).abs().mean((-1, -2))


def test_the_alarm_sounds_where_a_planted_reward_is_exploited():
    config = load(
        "cqtml_demo_policy", "optimizer.lr=0.02", "model.body.width=16", "model.body.depth=1", "model.grpo.kl=0"
    )
    policy = build(config)
    bright = [0.0] * 32
    for network in (policy.generator, policy.start, policy.drawing):
        nn.init.zeros_(network.body.head.weight)
        network.body.head.bias.data.copy_(torch.tensor(bright * 4))
    policy.taste = Exploitable()
    batch = policy.example_batch(4)
    assert policy.validation_step(batch, 0)["reward_hacking"] == 0
    train(policy, policy.configure_optimizers(), [batch | {"position": torch.arange(4) + 4 * i} for i in range(12)], 1)
    told = policy.validation_step(batch, 13)
    assert told["reward_gain"] > 0 and told["held_out_win_rate"] < 0.5 and told["reward_hacking"] == 1


@pytest.mark.parametrize(
    "gain, wins, kl, kept, sounds",
    [
        (1, 0.7, 0.1, 0.9, 0),
        (1, 0.4, 0.1, 0.9, 1),
        (1, 0.7, 0.6, 0.9, 1),
        (1, 0.7, 0.1, 0.1, 1),
        (-1, 0.4, 0.6, 0.1, 0),
    ],
)
def test_what_the_alarm_goes_by(gain, wins, kl, kept, sounds):
    policy = build(load("cqtml_demo_policy", "model.body.width=16", "model.body.depth=1"))
    assert policy.alarm(*(torch.tensor(float(value)) for value in (gain, wins, kl, kept))) == bool(sounds)


def test_the_network_that_draws_lags_behind():
    policy = build(load("cqtml_demo_policy", "model.body.width=16", "model.body.depth=1", "model.grpo.refresh=3"))
    batch, optimizers = policy.example_batch(2), policy.configure_optimizers()
    weight = lambda network: network.body.head.weight.detach().clone()  # noqa: E731
    begun, lagging = weight(policy.generator), []
    for step in range(1, 5):
        policy.optimize(PlainEngine(policy), batch, optimizers, step)
        lagging.append(torch.equal(weight(policy.drawing), begun))
    assert lagging == [True, True, True, False] and torch.equal(weight(policy.start), begun)


def test_a_policy_begins_as_its_generator_and_needs_a_reward():
    config = load("cqtml_demo_policy", "model.body.width=16", "model.body.depth=1")
    policy = build(config)
    taught_weights = {f"generator.{k}": v + 1 for k, v in policy.generator.state_dict().items()}
    reward = {f"taste.{k}": v + 1 for k, v in policy.taste.state_dict().items()}
    policy.start_from({"init_from": taught_weights, "reward": reward})
    for network in (policy.generator, policy.start, policy.drawing):
        assert torch.equal(network.body.head.weight, taught_weights["generator.body.head.weight"])
    with pytest.raises(KeyError, match="a run with taste"):
        policy.start_from({"init_from": taught_weights, "reward": taught_weights})
    assert not any(p.requires_grad for p in [*policy.start.parameters(), *policy.taste.parameters()])
