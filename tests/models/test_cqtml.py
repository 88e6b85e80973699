"""CQTML's generator: counts and shapes, levels and draws, what it is taught, what is local, and what programs may ask of it."""

import copy

import pytest
import torch
from torch import nn

from models.cqtml import api
from models.cqtml.brightness import (
    draw,
    expected,
    from_levels,
    log_probability,
    most_likely,
    to_columns,
    to_frames,
    to_levels,
)
from models.cqtml.config import Body, Head, ModelConfig, RewardShape
from models.cqtml.generator.augment import spliced, varied
from models.cqtml.generator.train_module import far_change
from models.cqtml.grpo import diversity
from models.cqtml.measuring import follows, locality, onset_figures
from models.cqtml.music import band_onsets, falling, note_onsets, pulse, taught
from models.cqtml.network import Generator
from models.cqtml.taste import Taste
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom
from tests.models.cqtml_data import DATA, heard
from tests.models.helpers import build, load

SMALL = {"width": 16, "depth": 2, "heads": 2, "columns": 8}


def generator(head="levels", levels=32, **body):
    torch.manual_seed(0)
    config = ModelConfig(system="cqtml", body=Body(**(SMALL | body)), head=Head(name=head, levels=levels))
    return Generator(config, DATA).eval(), config


@pytest.mark.parametrize("head, levels, count", [("levels", 32, 5_586_752), ("continuous", 32, 5_562_820)])
def test_the_full_size_counts_what_timms_vit_tiny_does(head, levels, count):
    with torch.device("meta"):
        network = Generator(ModelConfig(system="cqtml", head=Head(name=head, levels=levels)), DATA)
    assert sum(p.numel() for p in network.parameters()) == count
    names = {name for name, _ in network.body.named_parameters()}
    assert {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.11.attn.qkv.weight",
        "blocks.0.mlp.fc2.bias",
    } < names


def test_the_reward_counts_what_the_design_says():
    with torch.device("meta"):
        assert sum(p.numel() for p in Taste(RewardShape(), DATA).parameters()) == 839_297


@pytest.mark.parametrize("body", [{}, {"name": "cnn"}])
@pytest.mark.parametrize("frames", [1, 16, 100, 128, 431])
def test_any_length_gives_a_light_for_every_frame(frames, body):
    network, config = generator(**body)
    logits = network(heard(frames=frames))
    assert logits.shape == (2, 4, 32, -(-frames // 16))
    assert to_frames(most_likely(logits, config.head), frames).shape == (2, 4, frames)


def test_every_bin_and_every_frame_counts():
    network, _ = generator()
    cqt = heard(1, 120).requires_grad_()
    network(cqt).square().sum().backward()
    assert (cqt.grad[0, 0] != 0).all()


def test_rows_are_pooled_within_a_column():
    """Without blocks nothing is exchanged between columns, so a change in one is heard in that one alone."""
    network, _ = generator()
    network.body.blocks = nn.ModuleList()
    cqt = heard(1)
    for low in range(0, 84, 16):  # every row of patches, by itself
        altered = cqt.clone()
        altered[:, :, low : low + 4, 48:64] += 1
        changed = (network(altered) - network(cqt)).abs().amax((0, 1, 2)) > 1e-6
        assert changed.tolist() == [False, False, False, True, False, False, False, False]


@pytest.mark.parametrize("levels", range(2, 65))
def test_levels_come_back_exactly(levels):
    indices = torch.arange(levels)
    assert torch.equal(to_levels(from_levels(indices, levels), levels), indices)
    assert torch.equal(to_levels(from_levels(indices, levels).half(), levels), indices)


def test_columns_and_frames_agree():
    columns = torch.rand(2, 4, 8)
    frames = to_frames(columns, 128)
    assert torch.allclose((frames[..., 7::16] + frames[..., 8::16]) / 2, columns, atol=0.04)
    assert torch.equal(to_frames(torch.full((1, 4, 3), 0.3), 40), torch.full((1, 4, 40), 0.3))
    assert to_columns(torch.eye(128)[100][None]).nonzero().tolist() == [[0, 6]]


def test_draws_have_the_distribution_that_log_probability_says():
    head, logits = Head(levels=5), torch.randn(1, 4, 5, 1)
    uniform = torch.rand(1, 40_000, 4, 5, 1)
    for temperature in (0.5, 2.0):
        levels = to_levels(draw(logits, uniform, temperature, head), 5)
        every = torch.arange(5)[None, :, None, None].expand(1, 5, 4, 1)
        said = log_probability(logits, every, temperature).exp()[0, :, :, 0]
        seen = torch.stack([(levels == k).float().mean((0, 1, 3)) for k in range(5)])
        assert torch.allclose(said.sum(0), torch.ones(4)) and (said - seen).abs().max() < 0.015


def test_cold_draws_are_the_most_likely_and_hot_ones_differ():
    for name in ("levels", "continuous"):
        network, config = generator(name)
        logits, uniform = network(heard()), torch.rand(2, 6, 4, config.head.outputs, 8)
        cold, hot = draw(logits, uniform, 1e-6, config.head), draw(logits, uniform, 2.0, config.head)
        assert torch.allclose(cold, most_likely(logits, config.head)[:, None].expand_as(cold), atol=1e-5)
        assert diversity(hot).min() > 0.05 and diversity(cold).max() < 1e-5
        assert ((hot >= 0) & (hot <= 1)).all() and torch.equal(
            expected(logits, config.head), expected(logits, config.head)
        )


def test_timms_weights_are_taken_from_a_folder_and_nothing_else(tmp_path):
    from safetensors.torch import save_file

    body = Body(pretrained=True)
    network = Generator(ModelConfig(system="cqtml", body=body), DATA).body
    theirs = {
        name: torch.randn_like(value) for name, value in network.state_dict().items() if not name.startswith("head")
    }
    theirs |= {"patch_embed.proj.weight": torch.randn(192, 3, 16, 16), "pos_embed": torch.randn(1, 197, 192)}
    theirs |= {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    path = tmp_path / "vit_tiny_patch16_224" / "model.safetensors"
    path.parent.mkdir()
    save_file(theirs, path)
    head = network.head.weight.clone()
    network.load_pretrained(tmp_path)
    assert torch.equal(network.blocks[3].mlp.fc1.weight, theirs["blocks.3.mlp.fc1.weight"])
    assert torch.allclose(network.patch_embed.proj.weight.sum(1), theirs["patch_embed.proj.weight"].sum(1), atol=1e-5)
    assert torch.equal(network.head.weight, head) and network.pos_embed.shape == (1, 649, 192)
    with pytest.raises(UserError, match="no weights folder is named"):
        network.load_pretrained(None)
    save_file({"blocks.0.norm1.weight": torch.ones(3)}, path)
    with pytest.raises(UserError, match="is not vit_tiny_patch16_224"):
        network.load_pretrained(tmp_path)


def test_eight_bits_without_the_package_is_one_sentence():
    config = load("cqtml_demo", "model.body.eight_bit=true")
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        build(config).configure_optimizers()


def test_onsets_are_where_a_band_begins():
    magnitude = torch.full((1, 84, 400), -9.0)
    magnitude[0, 60:70, 200:] = 0.0
    onsets = band_onsets(magnitude)[0]
    assert abs(int(onsets[2].argmax()) - 200) < 12 and onsets[0].max() == 0 and onsets[1].max() == 0
    alone = torch.zeros(400)
    alone[100] = 0.8
    assert falling(alone, 0.15)[100 + round(0.15 * 22050 / 64)] == pytest.approx(0.8 / 2.718, rel=0.01)


def test_the_beat_is_found_and_silence_has_none():
    onsets = torch.zeros(2, 1723)
    onsets[0, 50::172] = 1.0  # every half second
    beats = pulse(onsets.clone())
    at = torch.arange(50, 1723, 172)[2:-2]
    assert beats[0, at].min() > 2 * beats[0, at + 86].max().clamp_min(0.02) and beats[1].max() < 1e-3


def test_labelled_notes_replace_what_is_heard():
    notes = torch.full((1, 512, 4), -1, dtype=torch.int32)
    notes[0, 0] = torch.tensor([3200, 6400, 30, 1])  # frame 50, lowest band
    notes[0, 1] = torch.tensor([-10, 6400, 100, 1])  # began before the segment
    hits = note_onsets(notes, torch.tensor([2]), 128)
    assert hits.nonzero().tolist() == [[0, 0, 50]]
    assert taught(heard(1), 0.15, (notes, torch.tensor([2])))[0, 1:3].max() < 1e-5


def test_variations_are_keyed_by_position():
    config = load("cqtml_demo").model.augment
    cqt = heard(4)
    both = varied(cqt, config, KeyedRandom(0), torch.arange(4))
    assert torch.equal(both[2:], varied(cqt[2:], config, KeyedRandom(0), torch.arange(2, 4)))
    assert both.shape == cqt.shape and not torch.equal(both, cqt)
    still = config.model_copy(update={"gain": 0.0, "semitones": 0, "pieces": 1})
    assert torch.equal(varied(cqt, still, KeyedRandom(0), torch.arange(4)), cqt)


@pytest.mark.parametrize(
    "change, words",
    [
        ("model.reward=null", "a policy is tuned on a reward"),
        ("model.head.name=continuous", "a policy needs a probability"),
        ("model.least_comparisons=5", "'least_comparisons' is not read where kind is 'policy'"),
        ("model.body.heads=3", "heads 3 does not divide width 64"),
        ("model.body.pretrained=true", "pretrained weights are of vit_tiny_patch16_224"),
        ("model.head.levels=65", "less than or equal to 64"),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(change, words):
    with pytest.raises(UserError, match=words):
        load("cqtml_demo_policy", change)


def test_locality_tells_a_local_network_from_a_scattering_one():
    network, config = generator()
    network.body.blocks = nn.ModuleList()
    cqt = heard(4)
    local = locality(network, config, cqt)
    assert local["locality"].min() > 0.999
    scattering = copy.deepcopy(network)
    scattering.forward = lambda cqt: network(cqt).mean(-1, keepdim=True).expand(-1, -1, -1, 8)
    assert locality(scattering, config, cqt)["locality"].max() < 0.5


def test_lights_that_follow_onsets_are_told_from_those_of_another_song():
    onsets = band_onsets(heard(4, 862)[:, 0]).mean(1)
    lights = falling(onsets, 0.15)[:, None].expand(-1, 4, -1)
    assert follows(lights, onsets).min() > 0.6 and follows(lights, onsets.roll(1, 0)).mean() < 0.3
    gain = onset_figures("model", lights, onsets)["model_onset_correlation_gain"]
    assert gain["low"] > 0.2 and gain["count"] == 4


class Module:
    def __init__(self, **body):
        self.generator, self.model_config = generator(**body)


def test_a_song_in_windows_is_one_song():
    module = Module()
    cqt = heard(1, 500)[0]
    lights = api.generate_deterministic(module, cqt)
    assert lights.shape == (4, 500)
    assert torch.equal(api.whole_logits(module, cqt[:, :, :128]), module.generator(cqt[None, :, :, :128])[0])


def test_deterministic_outputs_are_the_same_bits_and_draws_are_numbered():
    module, cqt = Module(dropout=0.3), heard(1, 300)[0]
    assert torch.equal(api.generate_deterministic(module, cqt), api.generate_deterministic(module, cqt.clone()))
    three = api.generate_stochastic(module, cqt, 0.8, samples=3, seed=5)
    one = api.generate_stochastic(module, cqt, 0.8, samples=1, seed=5)
    assert three.shape == (3, 4, 300) and torch.equal(three[0], one[0]) and not torch.equal(three[0], three[1])
    dropped = api.generate_stochastic(module, cqt, 1e-6, samples=2, dropout=True)
    assert not torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropped, api.generate_stochastic(module, cqt, 1e-6, samples=2, dropout=True))
    assert torch.equal(api.generate_deterministic(module, cqt), api.generate_deterministic(module, cqt))
    with pytest.raises(UserError, match="without dropout"):
        api.generate_stochastic(Module(), cqt, dropout=True)
    with pytest.raises(ValueError, match="greater than 0"):
        api.generate_stochastic(module, cqt, 0.0)
    with pytest.raises(ValueError, match="a CQT is"):
        api.generate_deterministic(module, cqt[0])


def test_half_precision_says_the_same_within_it():
    network, config = generator()
    cqt = heard()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(cqt)
        levels = to_levels(draw(logits, torch.rand(2, 3, 4, 32, 8), 1.0, config.head), 32)
        said = log_probability(logits, levels, 1.0)
    assert logits.dtype == torch.bfloat16 and said.dtype == torch.float32
    assert (expected(logits, config.head) - expected(network(cqt), config.head)).abs().max() < 0.02


def test_a_splice_is_keyed_by_position_and_far_columns_hear_the_same():
    cqt, other, position = heard(6), heard(6, seed=9), torch.arange(6)
    altered, far = spliced(cqt, other, KeyedRandom(0), position, 3)
    last, _ = spliced(cqt[3:], other[3:], KeyedRandom(0), position[3:], 3)
    assert torch.equal(altered[3:], last) and far.shape == (6, 8) and far.any()
    touched = to_columns((altered != cqt).any(1).any(1).float()) > 0
    assert touched.any(1).all()
    for columns, said in zip(touched.tolist(), far.tolist(), strict=True):
        near = {i + d for i, hit in enumerate(columns) if hit for d in range(-1, 4)}
        assert said == [i not in near for i in range(8)]


def test_the_baseline_hears_a_neighbourhood_and_no_more():
    network, _ = generator(name="cnn", depth=2)
    cqt = heard(1, 320)
    altered = cqt.clone()
    altered[..., :16] += 1
    changed = (network(altered) - network(cqt)).abs().amax((0, 1, 2)) > 1e-6
    assert changed[:5].all() and not changed[5:].any()  # two kernels of five columns


def test_locality_is_learned_by_its_weight():
    """A network that scatters is taught by that term alone, near enough, and by none."""
    fallen = {}
    for weight in (1e-3, 1e3):
        body = [f"model.body.{name}={value}" for name, value in SMALL.items()]
        module = build(load("cqtml_demo", f"model.warm_start.locality={weight}", *body))
        for block in module.generator.body.blocks:
            block.attn.qkv.weight.data.mul_(10)
            block.attn.proj.weight.data.mul_(10)
        (optimizer,) = module.configure_optimizers().values()
        batch = {"cqt": heard(4), "other_cqt": heard(4, seed=1), "position": torch.arange(4)}
        moved = []
        for step in range(1, 16):
            optimizer.zero_grad()
            values = module.training_step(batch, step)
            values["loss"].backward()
            optimizer.step()
            moved.append(values["far_change"].item())
        torch.testing.assert_close(values["loss"].detach(), values["imitation"] + weight * values["far_change"])
        fallen[weight] = moved[-1] / moved[0]
    assert fallen[1e3] < 0.5 * fallen[1e-3], fallen


def test_locality_without_a_partner_is_one_sentence():
    with pytest.raises(UserError, match=r"set data\.partner=true as well"):
        build(load("cqtml_demo", "data.partner=false"))


def test_far_changes_are_none_where_only_the_splice_moves():
    network, config = generator()
    network.body.blocks = nn.ModuleList()
    cqt = heard(3)
    altered, far = spliced(cqt, heard(3, seed=9), KeyedRandom(0), torch.arange(3), 1)
    assert far_change(network(cqt), network(altered), far, config.head) < 1e-7
    assert far_change(network(cqt), network(altered), torch.ones_like(far), config.head) > 1e-4
