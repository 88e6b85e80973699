"""Jingle_D's networks, losses and training: the stated counts, and a test for each way in which the ancestor failed."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jobs.configs import load_named
from jobs.planning import refuse_other_run
from models.codecs.standardisation import Standardisation
from models.jingle_d import mixer, objectives
from models.jingle_d.balancer import Balancer
from models.jingle_d.config import BalancerSection, ModelConfig
from models.jingle_d.train_module import TrainModule, pulled, weights_at
from pipeline.config import Ramp
from pipeline.errors import UserError
from pipeline.runs import RunFolder
from tests.conftest import ROOT
from tests.models.helpers import PlainEngine, build, load, train
from tests.models.jingle_d_data import TINY, tiny_info

UNIT = Standardisation(torch.zeros(128, 1), torch.ones(128, 1))


def tiny(*overrides, seed=0):
    torch.manual_seed(seed)
    return TrainModule(load("jingle_d_demo", *TINY, *overrides), tiny_info())


def count(module):
    return sum(p.numel() for p in module.parameters())


# -- sizes ---------------------------------------------------------------------------------------------------------------


def test_the_stated_counts():
    with torch.device("meta"):
        module = build(load("jingle_d"))
    cascade, masks, judge = module.mixer.cascade, module.mixer.masks, module.latent_discriminator
    assert [count(stage.layers) for stage in cascade.stages] == [6_320_640, 14_199_552]
    assert count(cascade) == 20_604_928
    assert (count(masks), count(module.style)) == (477_856, 197_826) and 477_856 + 197_826 == 675_682
    assert count(judge) == 3_802_881
    assert count(cascade) + count(masks) + count(judge) == 24_885_665
    assert count(module) == 24_885_665 + 197_826 + 472_490  # the STFT discriminators
    with torch.device("meta"):
        assert count(build(load("jingle_d_paper"))) == 24_885_665 + 197_826


def test_arithmetic_of_a_generator_step_through_the_discriminator():
    """At full size, one pair of 16 s, forwards and backwards: 308 GFLOP, most of them the cascade's."""
    with torch.device("meta"):
        module = build(load("jingle_d")).eval()
        given, target = torch.zeros(2, 1, 128, 1200)
        scale = Standardisation(torch.zeros(128, 1), torch.ones(128, 1))
        module.latent_discriminator.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            mixed = module.mixer(given, target, scale)
            module.latent_discriminator(mixed.latent).sum().backward()
    frames, attended = 1200, 1200**2
    weights = (
        3 * 2 * frames * (20_604_928 - 2560)
    )  # a product and a sum each, and twice that backwards; of norms nothing is counted
    attention = (
        3 * 4 * attended * (12 * 256 + 12 * 384 + 2 * 160)
    )  # two products a layer, twelve of each width, and the masks'
    convolutions = counter.get_total_flops() - weights - attention
    assert counter.get_total_flops() == 308_008_681_984
    assert (weights + attention) / counter.get_total_flops() == pytest.approx(0.93, abs=0.01) and convolutions > 0


# -- the ancestor's failures ----------------------------------------------------------------------------------------------


def test_envelope_term_has_a_bounded_gradient_where_the_logarithm_exploded():
    given = torch.randn(1, 24000)
    out = (given + 1e-4 * torch.randn(1, 24000)).requires_grad_()
    objectives.envelope_correlation(out, given).backward()
    ours = float(out.grad.norm())
    rho = objectives.correlation(objectives.envelope(out), objectives.envelope(given))
    exploding = torch.autograd.grad(-torch.log(1 - rho.abs()).sum(), out)[0]
    assert math.isfinite(ours) and ours < 0.01 * float(exploding.norm())
    still = torch.zeros(1, 24000, requires_grad=True)
    objectives.envelope_correlation(still, given).backward()
    assert torch.isfinite(still.grad).all()


def test_rescaling_is_clamped():
    loud = torch.ones(3, 1, 1)
    gains = mixer.level_gain(torch.tensor([1e-5, 1.0, 100.0]).view(3, 1, 1), loud, loud)
    assert gains.flatten().tolist() == [pytest.approx(1.5), 1.0, pytest.approx(0.7)]
    module = tiny()
    closed = (torch.full((1, 128, 32), 1e-6),) * 2
    mixed = module.mixer.under(closed, *torch.randn(2, 1, 128, 32), UNIT)
    assert float(mixed.heard.abs().max()) < 1e-4, "what the masks keep out is not brought back"


def test_output_has_the_level_of_both_recordings():
    module = tiny().eval()
    given = torch.randn(2, 128, 32)
    mixed = module.mixer.under((torch.ones(2, 128, 32),) * 2, 2 * given, given, UNIT)
    level = math.sqrt(2.5) * mixer.rms(given)
    assert torch.allclose(mixer.rms(mixed.latent), level, rtol=0.01) and not torch.allclose(
        mixer.rms(1.5 * given), level, rtol=0.01
    )


def test_masks_are_drawn_once_and_are_those_that_were_used():
    module, calls = tiny(), []
    module.train()
    module.mixer.masks.register_forward_hook(lambda _m, _a, out: calls.append(out))
    used = []
    module.mixer.cascade.register_forward_pre_hook(lambda _m, args: used.append(args))
    batch = module.example_batch(2)
    values = module.training_step(batch, 1)
    assert len(calls) == len(used) == 1
    (first, second) = calls[0]
    assert float(values["mask_overlap"]) == pytest.approx(float((first * second).detach().mean()), rel=1e-5)
    given, target = torch.randn(2, 1, 128, 32)
    mixed = module.mixer(given, target, UNIT)
    assert torch.equal(used[-1][0], mixed.input_mask * given) and torch.equal(used[-1][1], mixed.target_mask * target)


def test_the_ancestors_reconstruction_asks_for_nothing_that_the_average_has_not():
    """Every point between two recordings has the same sum of distances to both: 0.3 RMSE + 0.3 RMSE asks for nothing."""
    given, target = torch.randn(2, 1, 48000)
    between = [share * given + (1 - share) * target for share in (0.0, 0.25, 0.5, 1.0)]
    sums = [float(objectives.rmse(mix, given) + objectives.rmse(mix, target)) for mix in between]
    assert sums == [pytest.approx(sums[0], rel=1e-3)] * 4


def test_complementarity_of_constant_masks_is_three_quarters_and_normalised_it_is_nothing():
    constant = torch.full((2, 128, 40), 0.5)
    terms = objectives.mask_terms(constant, constant, 0.05)
    assert float(1 - terms["mask_overlap"]) == 0.75 and float(1 - terms["mask_disjoint"]) == 0.0
    assert float(terms["mask_variance"]) == pytest.approx(0.05) and float(terms["mask_balance"]) == 0.0
    first = (torch.arange(40) % 2).float().expand(2, 128, 40)
    terms = objectives.mask_terms(first, 1 - first, 0.05)
    assert (
        float(terms["mask_disjoint"]) == 0.0 == float(terms["mask_variance"]) and float(terms["mask_coverage"]) == 0.0
    )


# -- what is minimised ---------------------------------------------------------------------------------------------------


def test_rhythm_and_harmony_know_whose_they_are():
    torch.manual_seed(0)
    time = torch.arange(48000) / 24000
    clicks = [torch.randn(48000) * torch.exp(-(time % pace) / 0.02) for pace in (0.31, 0.5)]
    chords = [
        sum(torch.sin(2 * torch.pi * 220 * 2 ** (n / 12) * time) for n in notes) for notes in ((0, 4, 7), (1, 5, 10))
    ]
    first, second = (click + chord for click, chord in zip(clicks, chords, strict=True))
    module = tiny()
    ours = (clicks[0] + chords[1])[None]
    names = ("rhythm", "harmony")
    good = objectives.audio_terms(names, ours, first[None], second[None], ours, module.mel)
    plain = objectives.audio_terms(names, (first + second)[None] / 2, first[None], second[None], ours, module.mel)
    wrong = objectives.audio_terms(names, ours, second[None], first[None], ours, module.mel)
    for name in names:
        assert good[name] < plain[name] < wrong[name], name


def test_weights_and_their_schedules():
    config = load("jingle_d_demo", "model.losses.mask_regularisation=0.5", "model.losses.mask_overlap=4").model
    assert weights_at(config.losses, 1)["mask_overlap"] == 2.0
    ramp = config.losses.latent_adversary
    assert isinstance(ramp, Ramp) and weights_at(config.losses, ramp.begin)["latent_adversary"] == ramp.first
    assert weights_at(config.losses, ramp.end)["latent_adversary"] == ramp.last > 0


def test_noise_follows_its_schedule():
    module = tiny("model.noise={first: 0.5, last: 0.0, begin: 0, end: 10}")
    seen = []
    module.mixer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    batch = module.example_batch(2)
    clean = module._pair(batch, "train")[0]
    for step in (0, 5, 10):
        module.training_step(batch, step)
    deviations = [float((x - clean).std()) for x in seen]
    assert deviations == [pytest.approx(0.5, rel=0.05), pytest.approx(0.25, rel=0.05), 0.0]


def test_no_adversary_learns_from_the_generators_loss():
    module = tiny()
    values = module.training_step(module.example_batch(2), 10**6)
    assert values["latent_adversary"] != 0 and values["audio_adversary"] != 0 and values["feature_matching"] > 0
    values["loss"].backward(retain_graph=True)
    judges = [
        *module.latent_discriminator.parameters(),
        *module.audio_discriminator.parameters(),
        *module.style.parameters(),
    ]
    assert all(p.grad is None for p in judges) and all(p.grad is not None for p in module.mixer.parameters())
    module.zero_grad()
    values["loss_discriminator"].backward()
    assert all(p.grad is None for p in module.mixer.parameters()) and all(p.grad is not None for p in judges)


def test_micro_batches_change_no_norm_and_no_average():
    found = []
    for size in (4, 2):
        module = tiny("model.noise=0", "model.balancer={decay: 0.9}")
        engine = PlainEngine(module)
        engine.micro_batches = lambda batch, size=size: (
            ({k: v[i : i + size] for k, v in batch.items()}, size / 4) for i in range(0, 4, size)
        )
        values = module.optimize(engine, module.example_batch(4), module.configure_optimizers(), 900)
        norms = [float(values[name]) for name in ("loss", "loss_discriminator", "grad_norm_discriminator")]
        found.append([*norms, *module.balancer.squares.tolist()])
    assert found[0] == [pytest.approx(x, rel=1e-3, abs=1e-12) for x in found[1]]


def test_balanced_gradients_have_the_shares_of_their_weights():
    balancer = Balancer(("quiet", "loud", "none"), BalancerSection(decay=0.9, total=2.0))
    wave = torch.randn(4, 100)
    directions = torch.randn(2, 4, 100)

    def judge(leaf):
        return {
            "quiet": 1e-4 * (leaf * directions[0]).sum(1).mean(),
            "loud": 1e4 * (leaf * directions[1]).sum(1).mean(),
        }

    weights = {"quiet": 3.0, "loud": 1.0, "none": 1.0}
    for _ in range(3):
        wave.requires_grad_()
        _, value = pulled(wave, judge, weights, balancer)
        balancer.settle()
        (pull,) = torch.autograd.grad(value, wave)
    units = [d / d.square().sum(1).mean().sqrt() / 4 for d in directions]
    assert torch.allclose(pull, 2.0 * (0.75 * units[0] + 0.25 * units[1]), rtol=1e-4)
    assert balancer.weights.tolist() == [pytest.approx(1 - 0.9**3)] * 2 + [0.0]
    assert set(balancer.state_dict()) == {"squares", "weights"}, "a checkpoint holds it"


def test_balanced_training_goes_on_bit_for_bit():
    balanced = "model.balancer={total: 0.1}"
    module = tiny(balanced)
    batches = [module.example_batch(4) | {"position": torch.arange(4) + 4 * i} for i in range(4)]
    optimizers = module.configure_optimizers()
    train(module, optimizers, batches[:2], 700)
    resumed = tiny(balanced, seed=5)
    resumed.load_state_dict({k: v.clone() for k, v in module.state_dict().items()})
    others = resumed.configure_optimizers()
    for name, optimizer in others.items():
        state = optimizers[name].state_dict()
        copied = {k: {n: v.clone() for n, v in values.items()} for k, values in state["state"].items()}
        optimizer.load_state_dict(state | {"state": copied})
    assert train(module, optimizers, batches[2:], 702) == train(resumed, others, batches[2:], 702)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in module.state_dict().items())


# -- wiring and refusals -------------------------------------------------------------------------------------------------


def test_each_side_of_a_stage_sees_the_other():
    torch.manual_seed(0)
    module = tiny().eval()
    given, target = torch.randn(2, 1, 128, 32)
    moved = target.clone()
    moved[..., 20] += 3
    for mask, other in zip(module.mixer.masks(given, target), module.mixer.masks(given, moved), strict=True):
        change = (mask - other).abs().mean((0, 1))
        assert change[20] > change[2] and change[20] > 0
    stage = module.mixer.cascade.stages[0]
    assert isinstance(stage.out, nn.Linear)
    assert float(torch.linalg.matrix_norm(stage.out.weight, 2)) == pytest.approx(1.0, rel=0.1)


def test_a_changed_weight_goes_on_and_another_network_is_refused(tmp_path):
    run, old = RunFolder(tmp_path / "jingle_d_demo" / "1f3a9c2e"), load_named("jingle_d_demo")
    weights = ["model.losses.rhythm=2", "model.losses.audio_adversary.last=0.3", "optimizer.also.discriminator.lr=1e-4"]
    refuse_other_run(run, old, load_named("jingle_d_demo", weights))
    for change, shown in (
        ("model.cascade.layers=2", r"model\.cascade\.layers: 1 -> 2"),
        ("model.latent_discriminator.hidden=16", r"model\.latent_discriminator\.hidden: 32 -> 16"),
        ("data.recipe=audio_pairs", "data.recipe: 'audio_pairs_demo' -> 'audio_pairs'"),
    ):
        with pytest.raises(UserError, match=rf"cannot go on with another architecture, data or seed \({shown}\)"):
            refuse_other_run(run, old, load_named("jingle_d_demo", [change]))


def test_configs_that_cannot_be_are_told_in_a_sentence():
    cases = [
        (("model.latent_discriminator=null",), "latent_adversary"),
        (("model.audio_discriminator=null",), "audio_adversary"),
        (("model.audio_discriminator.excerpt=100",), "shorter than its window"),
        (("model.masks.heads=3",), "does not divide"),
        (("trainer.strategy=deepspeed",), "DeepSpeed steps one"),
        (("model.losses.rhythm=-1",), "losses.rhythm"),
    ]
    for overrides, says in cases:
        with pytest.raises(UserError, match=says):
            load("jingle_d_demo", *overrides)
    for overrides, says in (
        (("data.partner=false",), "data.partner=true"),
        (("model.frames=500",), "model.frames is 500"),
    ):
        with pytest.raises(UserError, match=says):
            build(load("jingle_d_demo", *overrides))
    with pytest.raises(UserError, match="holds none"):
        TrainModule(load("jingle_d_demo"), {"sample_rate": 24000})
    assert {"losses", "noise"} <= set(ModelConfig.live) and "cascade" not in ModelConfig.live


def test_inference_imports_nothing_that_is_only_on_linux():
    """On a laptop there is no deepspeed, bitsandbytes or NVML, and nobody needs Lightning to hear something."""
    program = (
        "import sys\n"
        "for name in ('deepspeed', 'bitsandbytes', 'pynvml', 'lightning', 'lightning_fabric', 'resource'): sys.modules[name] = None\n"
        "import models.jingle_d.generate, models.jingle_d.evaluate, models.codecs.mdct, models.codecs.encodec"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_two_pairs_never_share_a_song_over_the_split():
    """What the demo's corpus promises, and what the sources refuse: see tests/data_prep/test_audio_pairs.py for leaks that are made."""
    from data_prep.demo_audio_pairs import plan

    parts = [part for job in plan(20, 0) for part in job if part.side]
    songs = {}
    for part in parts:
        songs.setdefault(part.folder, set()).add(repr(part.song))
    train_songs, valid_songs = songs.values()
    assert train_songs and valid_songs and not train_songs & valid_songs


def test_describe_counts_the_adversaries_step_too():
    """The generator's loss alone never reaches the style discriminator on clean latents, nor any discriminator's weights."""
    from jobs.describe import describe

    found = describe(load("jingle_d_demo", *TINY), None)
    assert {"style", "latent_discriminator", "audio_discriminator"} <= {
        stage.name for stage in found.stages if stage.inputs
    }
    assert found.flops > 0 and found.trainable == count(tiny())
