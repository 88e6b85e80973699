"""DisMix's simple case: what its parts must do, and each error of earlier attempts that must not come back."""

import pytest
import torch
import torch.nn.functional as F

from models.dismix.binarisation import binarise
from models.dismix.losses import barlow_twins_diagonal, gaussian_error, kl_to_prior, pitch_error
from models.dismix.simple.encoders import FrameConv
from models.dismix.train_module import TrainModule
from pipeline.collectives import grouped
from pipeline.errors import UserError
from tests.models.helpers import build, info, load

SMALL = ("data.batch_size=8", "model.barlow_twins_group=4")
TABLE = {  # modules of configs/dismix_simple.yaml with 52 pitches
    "mixture_encoder": 8_023_360,
    "query_encoder": 8_023_360,
    "transcriber": 378_420,
    "translator": 11_712,
    "timbre_encoder": 397_952,
    "film": 8_320,
    "decoder": 1_742_976,
}


@pytest.fixture(scope="module")
def module():
    return build(load("dismix_demo", *SMALL))


@pytest.fixture(scope="module")
def batch(module):
    return module.example_batch(8)


def rows(batch, index):
    return {name: value[index] for name, value in batch.items()}


def test_full_size_has_the_papers_parameters():
    facts = info("dismix_simple")
    with torch.device("meta"):
        model = TrainModule(load("dismix_simple"), facts).model
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    print("\n" + "\n".join(f"{name:16s} {count:>12,}" for name, count in counts.items()))
    assert counts == TABLE
    assert sum(counts.values()) == pytest.approx(18.6e6, rel=0.02)


def test_frame_conv_is_conv1d():
    for kernel, stride, padding in [(3, 1, 1), (4, 2, 1), (1, 1, 0)]:
        conv = FrameConv(5, 7, kernel, stride, padding)
        x = torch.randn(2, 10, 5)
        reference = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, stride, padding).transpose(1, 2)
        torch.testing.assert_close(conv(x), reference)


def test_binarisation_is_hard_forwards_and_straight_through_backwards():
    probability = torch.tensor([0.1, 0.6, 0.9], requires_grad=True)
    bits = binarise(probability, torch.tensor([0.05, 0.7, 0.5]))
    assert bits.tolist() == [1.0, 0.0, 1.0]
    weights = torch.tensor([3.0, -2.0, 0.5])
    (bits * weights).sum().backward()
    assert torch.equal(probability.grad, weights)


def test_a_bit_is_on_with_its_probability():
    bits = binarise(torch.full((20000,), 0.3), torch.rand(20000, generator=torch.Generator().manual_seed(0)))
    assert bits.mean() == pytest.approx(0.3, abs=0.02)


def test_pitch_is_supervised_before_binarisation(module, batch):
    """The BCE does not see the threshold, and its gradient is that of plain logits."""
    mixture, queries = module.standardise(batch["mixture"]), module.standardise(batch["queries"][:, :, 0])
    low, high = (module.model.encode(mixture, queries, threshold=t) for t in (0.001, 0.999))
    assert not torch.equal(low.pitch, high.pitch)
    assert torch.equal(low.pitch_logits, high.pitch_logits)
    logits = low.pitch_logits.detach().requires_grad_()
    wanted = batch["pitch"] - module.pitch_low
    pitch_error(logits, wanted).backward()
    target = F.one_hot(wanted, logits.shape[-1])
    torch.testing.assert_close(logits.grad, (logits.detach().sigmoid() - target) / len(logits))


def test_without_binarisation_the_logits_go_on(batch):
    module = build(load("dismix_demo", *SMALL, "model.stochastic_binarisation=false"))
    logits = torch.randn(2, 2, module.pitches)
    assert torch.equal(module.model.pitch_latent(logits), module.model.translator(logits))


def test_a_query_speaks_for_its_own_source_only(module, batch):
    mixture, queries = module.standardise(batch["mixture"]), module.standardise(batch["queries"][:, :, 0])
    other = queries.clone()
    other[:, 1] += 1.0
    one, two = module.model.encode(mixture, queries), module.model.encode(mixture, other)
    for name in ("pitch_logits", "timbre_mean", "timbre_log_variance", "query_embedding"):
        before, after = getattr(one, name), getattr(two, name)
        assert torch.equal(before[:, 0], after[:, 0]), name
        assert not torch.equal(before[:, 1], after[:, 1]), name


def test_sources_stay_with_their_mixture(module, batch):
    """`repeat` where `repeat_interleave` is needed would pair a source with another sample's mixture."""
    mixture, queries = module.standardise(batch["mixture"]), module.standardise(batch["queries"][:, :, 0])
    together = module.model.encode(mixture, queries)
    for i in range(len(mixture)):
        alone = module.model.encode(mixture[i : i + 1], queries[i : i + 1])
        torch.testing.assert_close(together.timbre_mean[i], alone.timbre_mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.pitch_logits[i], alone.pitch_logits[0], rtol=1e-4, atol=1e-5)


def test_swapping_pitches_moves_pitch_and_nothing_else(module, batch):
    latents = module.model.encode(module.standardise(batch["mixture"]), module.standardise(batch["queries"][:, :, 0]))
    swapped = module.model.film(latents.timbre, latents.pitch.flip(1))
    scale, shift = module.model.film.modulate(latents.timbre).chunk(2, -1)
    torch.testing.assert_close(swapped[:, 0], scale[:, 0] * latents.pitch[:, 1] + shift[:, 0])
    sources, mixture = module.model.render(latents.timbre, latents.pitch.flip(1), 10)
    torch.testing.assert_close(mixture, module.model.decode(swapped.sum(1), 10))
    assert sources.shape == (8, 2, 128, 10)


def test_barlow_twins_looks_at_the_diagonal_only():
    query, timbre = torch.randn(2, 6, 3, 5), torch.randn(2, 6, 3, 5)
    expected = 0.0
    for group in range(2):
        for source in range(3):
            joint = torch.cat([query[group, :, source], timbre[group, :, source]], dim=1)
            diagonal = torch.corrcoef(joint.T)[:5, 5:].diagonal()
            expected += float((1 - diagonal).square().sum()) / 2
    assert float(barlow_twins_diagonal(query, timbre)) == pytest.approx(expected, rel=1e-4)
    assert float(barlow_twins_diagonal(query, 3 * query + 7)) == pytest.approx(0, abs=1e-4)


def test_terms_are_sums_over_dimensions_and_means_over_the_batch():
    target, mean = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    normal = torch.distributions.Normal(mean, 0.25)
    constant = torch.distributions.Normal(0.0, 0.25).log_prob(torch.tensor(0.0)) * 6
    torch.testing.assert_close(gaussian_error(target, mean, 0.25), -(normal.log_prob(target).sum() / 4 - constant))
    mean, log_variance = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    torch.testing.assert_close(
        kl_to_prior(mean, log_variance), torch.distributions.kl_divergence(posterior, prior).sum() / 4
    )


def test_noise_belongs_to_the_sample_not_to_the_batch(module, batch):
    """One process with 8 rows and two with 4 draw the same query, threshold and noise for a sample."""
    whole, halves = module._draws(batch), [module._draws(rows(batch, slice(i, i + 4))) for i in (0, 4)]
    for i, name in enumerate(("threshold", "noise")):
        assert torch.equal(whole[i], torch.cat([half[i] for half in halves])), name
    assert torch.equal(
        module._queries(batch), torch.cat([module._queries(rows(batch, slice(i, i + 4))) for i in (0, 4)])
    )


def test_micro_batches_give_the_loss_of_the_whole(module, batch):
    whole = module.training_step(batch, 1)
    halves = [module.training_step(rows(batch, slice(i, i + 4)), 1) for i in (0, 4)]
    for name, value in whole.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, atol=1e-5)


def test_every_ablation_is_a_weight(batch):
    for key in ("barlow_twins", "kl", "bce", "embedding", "reconstruction"):
        module = build(load("dismix_demo", *SMALL, f"model.{key}=0"))
        full = build(load("dismix_demo", *SMALL))
        losses = [m.training_step(batch, 1)["loss"].item() for m in (module, full)]
        assert losses[0] < losses[1], key


def test_the_curriculum_starts_with_pitch_and_ends_with_everything():
    module = build(load("dismix_demo", *SMALL, "model.curriculum_steps=100", "model.curriculum_start=0.04"))
    assert module._progress(0) == pytest.approx(0.04)
    assert module._progress(50) == pytest.approx(0.2)
    assert module._progress(100) == module._progress(10**6) == 1
    assert build(load("dismix_demo", *SMALL, "model.curriculum_steps=0"))._progress(0) == 1


def test_a_group_that_fits_nowhere_is_the_users_mistake():
    with pytest.raises(UserError, match=r"model\.barlow_twins_group is 6"):
        grouped(torch.zeros(4, 3), 6, 4, "model.barlow_twins_group")
    with pytest.raises(UserError):
        grouped(torch.zeros(4, 3), 8, 4, "model.barlow_twins_group")  # no second rank to gather from


def test_a_section_of_the_other_case_is_refused():
    with pytest.raises(UserError, match=r"model\.case=ldm"):
        load("dismix_demo", "model.ldm.frames=64")
