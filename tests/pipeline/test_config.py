"""Configs: strict, overridable, and an identity that hosts and budgets do not touch."""

import pytest
from pydantic import Field

from pipeline.config import ModelSection, Ramp, apply_overrides, differences, identity_of, parse_config
from pipeline.errors import UserError


class Model(ModelSection):
    width: int = Field(3, gt=0)
    weight: float = 1.0


TREE = {
    "model": {"system": "toy"},
    "data": {"recipe": "toy", "batch_size": 8},
    "optimizer": {"lr": 1e-3},
    "trainer": {"max_steps": 10},
}


def parse(*overrides: str):
    return parse_config(apply_overrides(TREE, overrides), Model, "configs/toy.yaml")


def test_override_reaches_nested_values_and_is_read_as_yaml():
    config = parse("optimizer.schedule.warmup_steps=5", "trainer.ema=0.99", "optimizer.betas=[0.5, 0.9]")
    assert config.optimizer.schedule.warmup_steps == 5
    assert config.trainer.ema == 0.99
    assert config.optimizer.betas == (0.5, 0.9)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_step=3", ["unknown key 'trainer.max_step'", "Did you mean 'max_steps'?", "Valid keys here:"]),
        ("model.widht=3", ["unknown key 'model.widht'", "Did you mean 'width'?"]),
        ("trainer.max_steps=many", ["'trainer.max_steps'", "valid integer", "'many'"]),
        ("optimizer.name=sgd", ["'optimizer.name'", "'adam', 'adamw' or 'radam'"]),
        ("trainer.max_steps", ["--set takes key=value"]),
        ("lr=1e-3", ["unknown key 'lr'", "Did you mean 'optimizer.lr'?"]),
        ("model.batch_size=3", ["Did you mean 'data.batch_size'?"]),
        ("model.width.deep=3", ["'model.width"]),
        ("trainer.deepspeed.stage=4", ["'trainer.deepspeed.stage'", "1, 2 or 3"]),
        ("optimizer.schedule.name=cosine", ["cosine schedule needs decay_steps"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_valid_choices(override, words):
    with pytest.raises(UserError) as caught:
        parse(override)
    for word in words:
        assert word in str(caught.value)


class Gan(Model):
    optimizers = ("generator", "discriminator")


def test_two_optimizers_under_deepspeed_are_refused_in_a_sentence():
    tree = apply_overrides(TREE, ["trainer.strategy=deepspeed"])
    assert parse_config(tree, Model, "configs/toy.yaml").trainer.deepspeed.stage == 2
    with pytest.raises(
        UserError, match=r"configs/toy\.yaml: toy trains with 2 optimizers \(generator, discriminator\)"
    ) as caught:
        parse_config(tree, Gan, "configs/toy.yaml")
    assert str(caught.value).endswith("DeepSpeed steps one: set trainer.strategy=ddp.") and "\n" not in str(
        caught.value
    )


def test_identity_ignores_budget_and_host_and_nothing_else():
    base = identity_of(parse(), "data")
    for free in (
        "trainer.max_steps=99",
        "trainer.save_every=7",
        "trainer.keep.last=9",
        "data.workers=3",
        "trainer.micro_batch=2",
        "trainer.activation_checkpointing=true",
        "trainer.strategy=deepspeed",
        "trainer.deepspeed.stage=3",
    ):
        assert identity_of(parse(free), "data") == base, free
    for bound in (
        "model.width=4",
        "optimizer.lr=0.1",
        "data.batch_size=16",
        "seed=1",
        "trainer.ema=0.9",
        "optimizer.schedule.warmup_steps=2",
    ):
        assert identity_of(parse(bound), "data") != base, bound
    assert identity_of(parse(), "other data") != base


def test_a_config_survives_yaml_and_is_frozen():
    import yaml

    config = parse("trainer.ema=0.5")
    assert parse_config(yaml.safe_load(config.to_yaml()), Model, "frozen") == config
    with pytest.raises(Exception, match="frozen"):
        config.seed = 3


def test_differences_name_every_changed_leaf():
    assert differences(parse(), parse("model.weight=2", "seed=3")) == {"model.weight": (1.0, 2.0), "seed": (0, 3)}


def test_a_key_that_the_project_gets_later_makes_no_run_another_one():
    class Later(Model):
        novelty: int = 3

    now, later = parse_config(TREE, Model, "now"), parse_config(TREE, Later, "later")
    assert identity_of(now, "data") == identity_of(later, "data")
    assert identity_of(parse_config(apply_overrides(TREE, ["model.novelty=4"]), Later, "later"), "data") != identity_of(
        now, "data"
    )


def test_every_optimizer_is_described_by_name():
    tree = apply_overrides(TREE, ["optimizer.also.discriminator.lr=0.1", "optimizer.also.discriminator.grad_clip=1"])
    config = parse_config(tree, Gan, "configs/toy.yaml")
    assert config.optimizer_of("generator") == (config.optimizer, config.trainer.grad_clip)
    assert (config.optimizer_of("discriminator")[0].lr, config.optimizer_of("discriminator")[1]) == (0.1, 1.0)
    for wrong, model in ((TREE, Gan), (tree, Model)):
        with pytest.raises(UserError, match=r"optimizer\.also describes the optimizers beside the first"):
            parse_config(wrong, model, "configs/toy.yaml")


def test_a_ramp_is_a_function_of_the_step():
    ramp = Ramp(first=1.0, last=3.0, begin=10, end=20)
    assert [ramp.at(step) for step in (0, 10, 15, 20, 99)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert Ramp(first=0.0, last=1.0, begin=10, end=20, shape="cosine").at(15) == pytest.approx(0.5)
    assert Ramp(first=0.0, last=1.0, begin=5, end=5).at(5) == 1.0
    with pytest.raises(ValueError, match="not before its begin"):
        Ramp(first=0.0, last=1.0, begin=5, end=4)
