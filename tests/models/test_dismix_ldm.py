"""DisMix's LDM case: what its parts must do, and each error of earlier attempts that must not come back."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F

from jobs.describe import preflight_sizes
from models.dismix.ldm import data as facts
from models.dismix.ldm.dit import assemble, partition
from models.dismix.ldm.encoders import Combine
from models.dismix.ldm.pitch import FrequencyMean, Shrink
from models.dismix.losses import barlow_twins_diagonal, gaussian_error_learned
from pipeline.errors import UserError
from pipeline.recompute import compute_again
from pipeline.rng import KeyedRandom
from pipeline.train_module import schedule_factor
from tests.models.helpers import build, info, load

TINY = "{channels: 4, res_blocks: 1, groups: 2}"
SMALL = (  # the paper's networks and its four sources, in small
    "data.recipe=cocochorales_ldm", "model.ldm.over_time=null", "model.ldm.query_frames=null",
    "model.ldm.frames=16", "model.ldm.dit.feed_forward=32", "data.batch_size=4", "model.barlow_twins_group=2",
    *(f"model.ldm.{part}={TINY}" for part in ("query_encoder", "transcriber", "translator")),
)  # fmt: skip
TABLE = {  # module of configs/dismix.yaml: parameters, of them trainable
    "query_encoder": (5_604_424, 5_604_424),
    "mixture_encoder": (22_395_160, 136),
    "combine_conv": (528, 528),
    "pitch_encoder": (14_202_313, 14_202_313),
    "timbre_encoder": (279_936, 279_936),
    "renderer": (72_184_089, 16_807_560),  # the DiT between the frozen VAE's encoder and decoder
    "elbo": (1, 1),
    "codec": (344, 0),  # quant_conv and post_quant_conv
}


@pytest.fixture(scope="module")
def module():
    return build(load("dismix_ldm_demo", *SMALL))


@pytest.fixture(scope="module")
def batch(module):
    return module.example_batch(4)


@pytest.fixture
def seen(module, batch):
    return facts.view(batch, module.sizes, module.random, "test")


def rows(batch, index):
    return {name: value[index] for name, value in batch.items()}


def encode(module, seen):
    return module.model.encode(
        module.mixture_input(seen.mixture, seen.mixture_latent), module.standardise(seen.queries)
    )


def test_full_size_has_the_papers_parameters():
    with torch.device("meta"):
        model = build(load("dismix")).model
    counts = {}
    for name, part in model.named_children():
        sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
        counts[name] = (sum(n for n, _ in sizes), sum(n for n, wanted in sizes if wanted))
        print(f"{name:16s} {type(part).__name__:16s} {counts[name][0]:>12,} {counts[name][1]:>12,}")
    assert counts == TABLE


def test_preflight_counts_the_full_size_without_a_step():
    sizes = preflight_sizes(load("dismix"), None)
    total, shared = (
        sum(total for total, _ in TABLE.values()),
        22_395_160 - 136,
    )  # two modules hold the VAE's encoder, which is one
    assert sizes["weights"] == 4 * (total - shared)
    assert sizes["gradients"] == 4 * sum(trained for _, trained in TABLE.values())
    assert sizes["saved"] < sizes["weights"] and sizes["activations_per_sample"] == 0, "frozen weights are not saved"


def test_patches_come_apart_and_together_again():
    latents = torch.randn(2, 3, 8, 12, 16)
    for patch in (2, 4):
        patches = partition(latents, patch)
        assert patches.shape == (2, 3, 12 // patch, patch * 128)
        assert torch.equal(assemble(patches, patch), latents)
    moved = latents.clone()
    moved[0, 1, :, 4:8] += 1  # the second patch of one member of one set
    changed = (partition(moved, 4) != partition(latents, 4)).any(-1)
    assert changed.nonzero().tolist() == [[0, 1, 1]]


def test_the_transcribers_short_cut_is_a_convolution_and_a_mean():
    conv, picture = FrequencyMean(5, 7), torch.randn(2, 5, 9, 6)
    expected = F.conv2d(picture, conv.weight, conv.bias, padding=1).mean(-1)
    torch.testing.assert_close(conv(picture), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [33, 40, 64, 99])
def test_any_number_of_pitches_becomes_sixteen_features(classes):
    assert Shrink(3)(torch.randn(2, 3, 10, classes)).shape == (2, 3, 5, 16)


def test_noise_of_step_t_has_the_level_of_step_t(module):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    clean, noise = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    step = torch.tensor([0, 10, 300, 700, 999])
    a = kept[step].float()[:, None, None]
    torch.testing.assert_close(module.noise.add(clean, noise, step), a.sqrt() * clean + (1 - a).sqrt() * noise)
    torch.testing.assert_close(module.noise.level(step), (kept / (1 - kept)).log()[step].float(), rtol=1e-3, atol=1e-3)
    assert module.noise.level(torch.tensor([999])) < -9, "the last step is noise alone"


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 200), ("dpm", 25)])
def test_sampling_draws_from_the_distribution_it_denoises(module, sampler, steps):
    """Data N(2, 0.5^2) has a denoiser in closed form; what is sampled with it must have that mean and deviation."""
    levels = []

    def denoise(noisy, level):
        levels.append(float(level[0]))
        kept = torch.sigmoid(level)[:, None]
        gain = kept.sqrt() * 0.25 / (kept * 0.25 + 1 - kept)
        return 2 + gain * (noisy - kept.sqrt() * 2)

    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    drawn = module.noise.sample(denoise, noise, sampler, steps)
    assert float(drawn.mean()) == pytest.approx(2, abs=0.05) and float(drawn.std()) == pytest.approx(0.5, abs=0.05)
    assert levels[0] < -9 and levels == sorted(levels) and len(levels) == steps


def test_noise_is_added_and_z0_is_what_is_predicted(module, batch, monkeypatch):
    """What the DiT sees is no clean latent, and what it is compared with is one."""
    shown = {}

    def spy(noisy, members, level, alone):
        shown.update(noisy=noisy, level=level)
        return clean_latents

    seen = facts.view(batch, module.sizes, module.random, "train/crop")
    clean_latents = torch.cat([seen.mixture_latent[:, None], seen.sources_latent], 1)
    monkeypatch.setattr(module.model.renderer, "forward", spy)
    terms = module.training_step(batch, 1)
    assert float(terms["reconstruction_sources"].detach()) == pytest.approx(0, abs=1e-3)
    kept = torch.sigmoid(shown["level"])[:, None, None, None, None]
    noise = (shown["noisy"] - kept.sqrt() * clean_latents) / (1 - kept).sqrt()
    assert noise.std(dim=(1, 2, 3, 4)).tolist() == pytest.approx([1] * 4, abs=0.1)
    assert len(shown["level"].unique()) == 4


def test_a_query_speaks_for_its_own_source_only(module, seen):
    other = dataclasses.replace(seen, queries=seen.queries.clone())
    other.queries[:, 1] += 1
    one, two = encode(module, seen), encode(module, other)
    conditions = [module.model.condition(x.timbre, x.pitch) for x in (one, two)]
    for before, after in [*zip(vars(one).values(), vars(two).values(), strict=True), conditions]:
        torch.testing.assert_close(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert not torch.equal(conditions[0][:, 1], conditions[1][:, 1])


def test_sources_stay_with_their_mixture(module, seen):
    """`repeat` where `repeat_interleave` is needed would pair a source with another sample's mixture."""
    together = encode(module, seen)
    for i in range(4):
        one = {field.name: getattr(seen, field.name)[i : i + 1] for field in dataclasses.fields(seen)}
        alone = encode(module, facts.View(**one))
        for name, value in vars(together).items():
            torch.testing.assert_close(value[i], getattr(alone, name)[0], rtol=1e-3, atol=1e-4, msg=name)


def test_the_query_is_never_the_target(module, batch):
    """Targets can be anything without the encoders knowing; and a query is a clip of its own, with its own crop."""
    other = batch | {"sources_latent": torch.zeros_like(batch["sources_latent"])}
    before, after = (module.training_step(b, 1) for b in (batch, other))
    for name in ("bce", "kl", "barlow_twins"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["reconstruction_sources"], after["reconstruction_sources"])
    spoken = module.training_step(batch | {"queries": batch["queries"].flip(0)}, 1)
    assert not torch.equal(before["bce"], spoken["bce"])


def test_queries_are_averaged_over_time_not_over_frequency(module, seen):
    pictures = seen.queries.flatten(0, 1).transpose(-1, -2)[:, None]
    encoder = module.model.query_encoder
    assert torch.equal(encoder(pictures), encoder.layers(pictures).mean(2, keepdim=True))
    assert encoder(pictures).shape == (16, 8, 1, 16)


def test_an_untrained_combination_keeps_the_features_in_their_order():
    mixture, query = torch.zeros(1, 8, 3, 16), torch.zeros(1, 8, 1, 16)
    mixture[0, :, 1, 5], query[0, :, 0, 9] = 1, 1
    joint = Combine()(mixture, query)[0, 0]
    assert joint.shape == (3, 16) and (joint[:, 9] > 0.5).all()
    assert joint[1, 5] > 0.5 and joint[[0, 2], 5].abs().max() < 0.5


def test_a_crop_is_the_same_place_of_mixture_sources_and_pitch(module, batch):
    batch = dict(batch)
    frame = torch.arange(400.0)
    batch["mixture"] = frame.expand_as(batch["mixture"]).clone()
    batch["pitch"] = frame.long().expand_as(batch["pitch"]).clone()
    for name in ("mixture_latent", "sources_latent"):
        batch[name] = torch.arange(100.0)[:, None].expand_as(batch[name]).half()
    seen = facts.view(batch, module.sizes, KeyedRandom(3), "x")
    starts = seen.pitch[:, 0, 0]
    assert len(starts.unique()) > 1 and not (starts % 4).any()
    for i, start in enumerate(starts.tolist()):
        assert torch.equal(seen.mixture[i, 0], frame[start : start + 16])
        assert (seen.pitch[i] == torch.arange(start, start + 16)).all()
        for latent in (seen.mixture_latent[i, 0, :, 0], seen.sources_latent[i, 2, 5, :, 3]):
            assert torch.equal(latent, torch.arange(start // 4, start // 4 + 4.0))


def test_a_query_may_be_longer_than_what_is_looked_at(module, batch):
    sizes = load("dismix_ldm_demo", *SMALL, "model.ldm.query_frames=400").model.ldm
    seen = facts.view(batch, sizes, KeyedRandom(3), "x")
    assert seen.mixture.shape[-1] == 16 and torch.equal(seen.queries, batch["queries"][:, :, 0])
    long = facts.view(batch, module.sizes.model_copy(update={"query_frames": 200}), KeyedRandom(3), "x").queries
    short = facts.view(batch, module.sizes, KeyedRandom(3), "x").queries
    assert long.shape[-1] == 200 and short.shape[-1] == 16


def test_networks_over_time_take_and_give_what_the_picture_networks_do():
    """Same shapes whatever the length; the melody moves with time, and a pitch class is not its neighbour."""
    model = build(load("dismix_ldm_demo")).model.eval()
    encoder, transcriber = model.query_encoder.layers, model.pitch_encoder.transcriber
    for frames in (16, 64, 400):
        assert encoder(torch.randn(3, 1, frames, 64)).shape == (3, 8, frames // 4, 16)
        assert transcriber(torch.randn(3, 8, frames // 4, 16)).shape == (3, frames, 65)
    bits = torch.zeros(2, 1, 64, 65)
    bits[0, 0, :, 30] = bits[1, 0, :, 31] = 1
    one, other = model.pitch_encoder.translator(bits)
    assert one.shape == (8, 16, 16) and not torch.allclose(one, other)
    with torch.no_grad():
        quiet = torch.sigmoid(transcriber(torch.randn(8, 8, 16, 16))).mean()
    assert quiet < 0.05, "untrained, one class in 65 is on"
    embedding = torch.randn(1, 8, 24, 16)
    embedding[:, :, 8:] = embedding[:, :, 7:8]  # nothing moves in the second half
    logits = transcriber(embedding)[0]
    torch.testing.assert_close(logits[56:60], logits[60:64])
    assert not torch.allclose(logits[8:12], logits[12:16])


def test_members_of_a_set_look_at_each_other_unless_they_are_alone(module):
    model, noise = module.model, torch.randn(2, 5, 8, 4, 16)
    sources = torch.randn(2, 4, 8, 4, 32)
    members, level = model.members(sources), torch.zeros(2)
    torch.testing.assert_close(members[:, 0], sources.sum(1))
    changed = members.clone()
    changed[:, 2] += 1

    def others(alone):
        out = [model.renderer(noise, m, level, torch.tensor([alone, alone])) for m in (members, changed)]
        assert not torch.allclose(out[0][:, 2], out[1][:, 2])
        return torch.allclose(out[0][:, [0, 1, 3, 4]], out[1][:, [0, 1, 3, 4]])

    assert others(True) and not others(False)
    apart = model.renderer(noise.flatten(0, 1)[:, None], members.flatten(0, 1)[:, None], level.repeat_interleave(5))
    masked = model.renderer(noise, members, level, torch.tensor([True, True]))
    torch.testing.assert_close(masked.flatten(0, 1), apart[:, 0], rtol=1e-4, atol=1e-5)
    order = [0, 3, 1, 4, 2]  # a set has no order
    whole, mixed = model.renderer(noise, members, level), model.renderer(noise[:, order], members[:, order], level)
    torch.testing.assert_close(whole[:, order], mixed, rtol=1e-4, atol=1e-5)


def test_all_sources_of_a_group_share_one_correlation(module, batch, monkeypatch):
    pairs = []
    monkeypatch.setattr(
        "models.dismix.ldm.training.barlow_twins_diagonal",
        lambda q, t: pairs.append((q, t)) or barlow_twins_diagonal(q, t),
    )
    with torch.no_grad():
        terms = module.training_step(batch, 1)
    ((query, timbre),) = pairs
    assert query.shape == timbre.shape == (2, 2 * 4, 1, 128)
    expected = sum(
        float((1 - torch.corrcoef(torch.cat([q[:, 0], t[:, 0]], 1).T)[:128, 128:].diagonal()).square().sum())
        for q, t in zip(query, timbre, strict=True)
    )
    assert float(terms["barlow_twins"].detach()) == pytest.approx(expected / 2, rel=1e-3)


def test_the_scale_of_the_likelihood_is_learned():
    target, mean, log_sigma = torch.randn(3, 4), torch.randn(3, 4), torch.tensor(0.3, requires_grad=True)
    normal = torch.distributions.Normal(mean, log_sigma.exp())
    constant = -0.5 * torch.log(torch.tensor(2 * torch.pi)) * 4
    torch.testing.assert_close(
        gaussian_error_learned(target, mean, log_sigma), -(normal.log_prob(target).sum() / 3 - constant)
    )
    gaussian_error_learned(target, mean, log_sigma).backward()
    assert log_sigma.grad != 0


def test_silence_is_the_last_class(module):
    low, rest = module.sizes.pitch_low, module.data["rest"]
    assert module.classes(torch.tensor([low, low + 5, rest])).tolist() == [0, 5, module.sizes.pitch_classes - 1]


def test_a_note_that_the_transcriber_does_not_know_is_named(module):
    known = torch.tensor([[module.sizes.pitch_low, module.sizes.pitch_high, int(module.data["rest"])]])
    assert module.classes(known).tolist() == [[0, module.sizes.pitch_classes - 2, module.sizes.pitch_classes - 1]]
    with pytest.raises(UserError, match="the data holds the note 12"):
        module.classes(torch.tensor([[12]]))


def test_micro_batches_give_the_loss_of_the_whole(module, batch):
    whole = module.training_step(batch, 1)
    halves = [module.training_step(rows(batch, slice(i, i + 2)), 1) for i in (0, 2)]
    for name, value in whole.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-3, atol=1e-4, msg=name)


def test_every_ablation_is_a_key(batch, module):
    full = module.training_step(batch, 1)["loss"].item()
    for key in ("barlow_twins", "kl", "bce", "reconstruction"):
        ablated = build(load("dismix_ldm_demo", *SMALL, f"model.{key}=0"))
        assert ablated.training_step(batch, 1)["loss"].item() < full, key
    without = build(load("dismix_ldm_demo", *SMALL, "model.stochastic_binarisation=false")).model.pitch_encoder
    logits = torch.randn(2, 16, 65)
    assert torch.equal(without.latent(logits, 0.5), without.translator(logits[:, None]))
    assert torch.equal(
        module.model.pitch_encoder.latent(logits, 0.5), module.model.pitch_encoder.latent(9 * logits, 0.5)
    )


def test_the_learning_rate_follows_the_step():
    """308,000 steps of warm-up, a little more at each: counted in epochs it would stay at the start."""
    schedule = load("dismix").optimizer.schedule
    factors = [schedule_factor(schedule, step) for step in (1, 2, 154_000, 308_000, 2_200_000, 4_092_000)]
    assert factors == pytest.approx([1 / 308_000, 2 / 308_000, 0.5, 1, 0.5, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.ldm.frames=20", "no multiple of 8"),
        ("model.ldm.query_encoder={channels: 6, groups: 4}", "does not divide 6 channels"),
        ("model.ldm.pitch_high=40", "at least 32 notes"),
        ("model.ldm.query_frames=10", "multiple of 4"),
        ("model.ldm.over_time.wide=10", "over_time.*wide"),
        ("model.sigma=2", r"model\.case=simple"),
    ],
)
def test_sizes_that_do_not_fit_are_told(change, says):
    with pytest.raises(UserError, match=says):
        load("dismix_ldm_demo", change)


def test_data_that_does_not_fit_is_told():
    config, data = load("dismix_ldm_demo", "model.ldm.frames=800"), info("dismix_ldm_demo")
    with pytest.raises(UserError, match="has 400 frames"):
        type(build(load("dismix_ldm_demo", *SMALL)))(config, data)
    with pytest.raises(UserError, match=r"query_frames is 404, the data has 400 frames"):
        build(load("dismix_ldm_demo", "model.ldm.query_frames=404"))
    data.pop("latent")
    with pytest.raises(UserError, match=r"data\.codec=meldct"):
        type(build(load("dismix_ldm_demo", *SMALL)))(config, data)


def test_a_lean_installation_is_told_what_is_missing(monkeypatch):
    """`make demo` installs no diffusers, and the simple case does without."""
    monkeypatch.setattr("models.dismix.ldm", sys.modules["models.dismix.ldm"])  # put back with the modules below
    for name in [name for name in sys.modules if name.startswith("models.dismix.ldm")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="make setup"):
        build(load("dismix_ldm_demo", *SMALL))
    build(load("dismix_demo"))


def test_the_picture_networks_computed_again_have_the_same_gradients():
    """They are diffusers', and not all of what they hold is ours."""
    found = []
    for again in (False, True):
        module = build(load("dismix_ldm_demo", *SMALL)).train()
        if again:
            compute_again(module.recomputed())
        kept = {}  # bytes by storage

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module.training_step(module.example_batch(4), 1)["loss"]
        loss.backward()
        found.append(
            ({name: p.grad for name, p in module.named_parameters() if p.grad is not None}, sum(kept.values()))
        )
    (plain, all_kept), (again, few) = found
    assert plain.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in plain.items())
    assert few < 0.5 * all_kept
