"""CD4MT's networks, schedules, objectives and samplers, against counts, hand-computed values and closed forms."""

import math

import pytest
import torch

from jobs.describe import show
from models.cd4mt import data as facts
from models.cd4mt import objectives, sampling
from models.cd4mt import schedules as s
from models.cd4mt.config import Cm, Ect, Ict, LogNormal
from models.cd4mt.coupling import coupled
from models.cd4mt.denoiser import Denoiser, Layout
from models.cd4mt.distances import default_scale, distance
from models.cd4mt.objectives import objective, scm_tangent, trajectory
from models.cd4mt.sampling import Known
from models.cd4mt.train_module import TrainModule
from pipeline.errors import UserError
from pipeline.recompute import compute_again
from tests.models.cd4mt_data import TINY
from tests.models.helpers import CONFIGS, PlainEngine, build, channels_last_wanted, load, train

OBJECTIVES = {
    "edm": ("model.objective=edm",),
    "cm": ("model.objective=cm", "model.cm={steps: 40, last: 10}"),
    "ict": ("model.objective=ict", "model.ict={steps: 40}"),
    "ect": ("model.objective=ect", "model.ect={stages: 4, stage_steps: 5}"),
    "scm": ("model.objective=scm", "model.noise_level=angle", "model.scm={warmup_steps: 5}"),
}


def tiny(name="ect", *more):
    return load("cd4mt_demo_edm", *TINY, *(() if name == "edm" else ("model.edm=null",)), *OBJECTIVES[name], *more)


@pytest.mark.parametrize(("name", "count"), [("cd4mt_small", 11_408_448), ("cd4mt_medium", 145_136_128)])
def test_the_ancestors_networks_have_their_counts(name, count):
    with torch.device("meta"):
        module = build(load(name))
    assert sum(p.numel() for p in module.parameters()) == count


def test_the_full_size_is_four_stems_of_127_frames():
    config = load("cd4mt_small")
    data = TrainModule.typical_data(config)
    assert data["latent"]["fields"]["stems_latent"]["shape"] == [4, 64, 127] and data["segment"] == 524288
    with torch.device("meta"):
        module = build(config)
        noisy, sigma = torch.empty(4, 4, 64, 127), torch.empty(4)
    assert module.denoiser(noisy, sigma).shape == (4, 4, 64, 127)


def test_a_map_keeps_its_channels_last_all_the_way():
    module = build(tiny("ect", "model.layout=map"))
    with channels_last_wanted(module) as apart:
        module.training_step(module.example_batch(2), 1)
    assert apart == []


@pytest.mark.parametrize("kind", ["time", "map"])
def test_what_is_folded_comes_back_and_other_cells_are_empty(kind):
    layout = Layout(kind, 4)
    latents = torch.randn(2, 4, 8, 127)
    cells = layout.fold(latents)
    assert cells.shape == ((2, 32, 128) if kind == "time" else (2, 32, 12, 12))
    assert torch.equal(layout.unfold(cells, 4, 127), latents)
    assert not cells.flatten(2)[..., 127:].any()


def test_preconditioning_is_edms_and_trigflows_at_once():
    """Table 1 of 2206.00364 and Section 3 of 2410.11081 of one network, whose output has the other sign there."""
    config = tiny("scm").model
    denoiser = Denoiser(config, 4, 64).eval()
    clean, noise, sigma = torch.randn(3, 4, 64, 8) / 2, torch.randn(3, 4, 64, 8), torch.tensor([0.01, 0.5, 60.0])
    angle = torch.atan(sigma / 0.5)
    moved, _ = trajectory(clean, noise, angle, 0.5)
    cos, sin = angle.cos().reshape(-1, 1, 1, 1), angle.sin().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        trig = cos * moved - sin * 0.5 * -denoiser.raw(moved / 0.5, angle)
        edm = denoiser(clean + sigma.reshape(-1, 1, 1, 1) * noise, sigma)
    torch.testing.assert_close(edm, trig, rtol=1e-4, atol=1e-4)


def test_consistency_models_leave_the_least_noise_alone():
    """f(x, sigma_min) = x (2303.01469, Section 3)."""
    denoiser = Denoiser(tiny("ict").model, 4, 64)
    x = torch.randn(2, 4, 64, 8)
    torch.testing.assert_close(denoiser(x, torch.full((2,), 0.002)), x)


def test_schedules_by_hand():
    assert s.karras_sigmas(3, 0.002, 80.0, 7.0).tolist() == pytest.approx([80, 2.5152, 0.002], rel=1e-3)
    cm = Cm(steps=1000)
    assert [s.cm_levels(k, cm) for k in (0, 500, 1000, 5000)] == [2, 107, 151, 151]
    assert s.cm_teacher_decay(0, cm) == pytest.approx(0.95) and s.cm_teacher_decay(1000, cm) == pytest.approx(
        0.999321, abs=1e-6
    )
    ict = Ict(steps=800)  # K' = 100
    assert [s.ict_levels(k, ict) for k in (0, 99, 100, 399, 700, 10**9)] == [11, 11, 21, 81, 1281, 1281]
    shares = s.lognormal_shares(torch.tensor([0.1, 1.0, 10.0]).double(), LogNormal(mean=0.0, deviation=1.0))
    assert shares.tolist() == pytest.approx([0.5, 0.5])
    ect = Ect(diffusion_steps=10, stage_steps=5, stages=4)
    t = torch.tensor([1.0, 10.0])
    assert not s.ect_partner(t, 9, ect).any()
    assert s.ect_partner(t, 10, ect).tolist() == pytest.approx([0.0, 4.99818], abs=1e-4)
    assert s.ect_partner(t, 25, ect).tolist() == pytest.approx([0.803029, 9.37477], abs=1e-4)
    assert torch.equal(s.ect_partner(t, 25, ect), s.ect_partner(t, 10**9, ect))
    assert [s.scm_warmup(k, 10) for k in (0, 5, 20)] == [0, 0.5, 1] and s.scm_warmup(0, 0) == 1


def test_distances_by_hand():
    one, other = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    assert float(distance(one, other, "l2", None)) == 12.5
    assert float(distance(one, other, "pseudo_huber", 12.0)) == pytest.approx(1)
    assert float(distance(one, other, "cauchy", 5.0)) == pytest.approx(math.log(1.5))
    assert default_scale(4 * 64 * 127) == pytest.approx(0.0974, abs=5e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_its_batch_by_heart_with_bounded_gradients(name):
    module = build(tiny(name, "optimizer.lr=5.0e-3"))
    batch, optimizers = module.example_batch(4), module.configure_optimizers()
    engine, norms, losses = PlainEngine(module), [], []
    for step in range(
        1, 29 if name == "scm" else 13
    ):  # sCM's target moves with the network: its loss rises before it falls
        logged = module.optimize(engine, batch, optimizers, step if name == "edm" else 10**6)
        losses.append(float(logged["loss"]))
        norms.append(float(logged["grad_norm"]))
    assert all(map(math.isfinite, norms)) and losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_a_function_of_weights_position_and_step(name):
    module = build(tiny(name))
    batch = module.example_batch(4)
    one, again = module.training_step(batch, 7)["loss"], module.training_step(batch, 7)["loss"]
    moved = module.training_step(batch | {"position": batch["position"] + 4}, 7)["loss"]
    assert torch.equal(one, again) and not torch.equal(one, moved)
    halves = [module.training_step({k: v[i : i + 2] for k, v in batch.items()}, 7)["loss"] for i in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, one, rtol=1e-4, atol=1e-5)


def test_student_and_teacher_drop_the_same():
    """Without noise between them, what is left is the dropout: nothing."""
    config = tiny("ict", "model.unet.dropout=0.5", "model.sigma_min=79.999", "model.middle=79.9995").model
    denoiser = Denoiser(config, 4, 64).train()
    denoiser.boundary = 0.0
    clean, noise, draw = torch.randn(2, 4, 64, 8), torch.randn(2, 4, 64, 8), torch.rand(2)
    gap = 0.001 / 10  # of two levels
    with torch.no_grad():
        assert float((objective(config, denoiser, denoiser, clean, noise, draw, 1) * gap).max()) < 0.05


def test_diffusion_is_the_first_stage_of_tuning():
    """With r = 0 the teacher is the data itself, whatever the teacher's weights."""
    config = tiny("ect", "model.ect.diffusion_steps=3").model
    student, other = Denoiser(config, 4, 64), Denoiser(config, 4, 64)
    given = [torch.randn(2, 4, 64, 8), torch.randn(2, 4, 64, 8), torch.tensor([0.9, 0.99])]
    assert torch.equal(objective(config, student, student, *given, 3), objective(config, student, other, *given, 3))
    assert not torch.equal(
        objective(config, student, student, *given, 30), objective(config, student, other, *given, 30)
    )


def test_scms_tangent_is_the_derivative_along_the_trajectory():
    denoiser = Denoiser(tiny("scm").model, 4, 64).eval()
    clean, noise, angle = torch.randn(2, 4, 64, 8) / 2, torch.randn(2, 4, 64, 8), torch.tensor([0.4, 1.2])
    _, tangent = scm_tangent(denoiser, clean, noise, angle, 1.0)

    def f(t):
        moved, _ = trajectory(clean, noise, t, 0.5)
        return denoiser(moved / t.cos().reshape(-1, 1, 1, 1), 0.5 * t.tan())

    step = 5e-3
    with torch.no_grad():
        slope = (f(angle + step) - f(angle - step)) / (2 * step)
    torch.testing.assert_close(tangent, angle.cos().reshape(-1, 1, 1, 1) * slope, rtol=2e-2, atol=2e-3)


def test_cms_teacher_is_an_average_that_follows():
    module = build(tiny("cm"))
    before = [p.clone() for p in module.teacher.parameters()]
    train(module, module.configure_optimizers(), [module.example_batch(4)], 1)
    for old, average, weight in zip(before, module.teacher.parameters(), module.denoiser.parameters(), strict=True):
        torch.testing.assert_close(average, 0.95 * old + 0.05 * weight)
    assert not {name for name, _ in module.averaged_parameters() if name.startswith("teacher")}


def test_a_diffusion_run_begins_any_other():
    weights = build(tiny("edm")).state_dict()
    module = build(tiny("cm"), seed=3)
    module.start_from({"init_from": weights})
    for network in (module.denoiser, module.teacher):
        assert all(torch.equal(value, weights[f"denoiser.{name}"]) for name, value in network.state_dict().items())


def gaussian(mean, deviation):
    """The denoiser of N(mean, deviation^2), and the exact end of its ODE."""

    def denoise(x, sigma):
        share = deviation**2 / (deviation**2 + sigma.reshape(-1, 1, 1, 1) ** 2)
        return mean + share * (x - mean)

    def end(x, sigma):
        return mean + (x - mean) * deviation / math.hypot(deviation, sigma)

    return denoise, end


def test_heuns_method_ends_where_the_ode_does_and_goes_to_zero_noise():
    denoise, end = gaussian(0.3, 0.5)
    noise = torch.randn(2, 4, 3, 5)
    sigmas = s.karras_sigmas(35, 0.002, 80.0, 7.0).tolist()
    asked = []
    made = sampling.heun(lambda x, sigma: (asked.append(float(sigma[0])), denoise(x, sigma))[1], noise, sigmas)
    torch.testing.assert_close(made, end(80 * noise, 80.0).float(), rtol=2e-2, atol=5e-3)
    assert len(asked) == 69 and asked[-1] == pytest.approx(0.002)


def test_consistency_sampling_adds_noise_and_ends_with_the_models_answer():
    asked = []

    def model(x, sigma):
        asked.append((x.clone(), float(sigma[0])))
        return torch.full_like(x, 7.0)  # beyond any clamp

    noises = [torch.randn(1, 4, 2, 3) for _ in range(2)]
    sigmas = sampling.levels(tiny().model, 2)
    assert torch.equal(sampling.consistency(model, noises, sigmas), torch.full((1, 4, 2, 3), 7.0))
    assert [sigma for _, sigma in asked] == pytest.approx([80, 0.821])
    torch.testing.assert_close(asked[1][0], 7 + 0.821 * noises[1])
    assert len(sampling.levels(tiny().model, 1)) == 1 and len(sampling.levels(tiny().model, 6)) == 6


@pytest.mark.parametrize("name", ["edm", "ect"])
def test_what_is_given_comes_back_unchanged(name):
    module = build(tiny(name)).eval()
    mask = torch.zeros(2, 4, 1, 8, dtype=torch.bool)
    mask[:, 1], mask[:, :, :, :3] = True, True
    known = Known(torch.randn(2, 4, 64, 8), mask)
    made = module.draw(torch.arange(2), 8, 3, known)
    assert torch.equal(made[mask.expand_as(made)], known.latents[mask.expand_as(made)])
    free = module.draw(torch.arange(2), 8, 3)
    assert not torch.equal(free, module.draw(torch.arange(2), 8, 3, seed=1)) and made.isfinite().all()
    torch.testing.assert_close(free[1:], module.draw(torch.tensor([1]), 8, 3), rtol=1e-3, atol=1e-3)


def test_the_shortcut_begins_with_nothing_and_passes_each_channel_by_the_noise_level():
    plain, short = (build(tiny("edm", f"model.unet.shortcut={on}")).denoiser.network for on in ("false", "true"))
    assert short.load_state_dict(plain.state_dict(), strict=False).missing_keys == [
        "shortcut.factors.weight",
        "shortcut.factors.bias",
    ]
    x, level = torch.randn(2, 256, 8), torch.tensor([1.0, 500.0])
    torch.testing.assert_close(short(x, level), plain(x, level))
    short.shortcut.factors.bias.data[7] = 3.0
    added = short(x, level) - plain(x, level)
    torch.testing.assert_close(added[:, 7], 3 * x[:, 7])
    assert not added[:, 8:].any()
    torch.nn.init.ones_(short.shortcut.factors.weight)
    one, other = (short(x, level) - plain(x, level))[:, 8]
    assert (one / x[0, 8]).std() < 1e-3 and abs(float((one / x[0, 8]).mean() - (other / x[1, 8]).mean())) > 1e-3


def test_non_scaling_norms_have_no_scale():
    module = build(tiny("ect", "model.unet.norm=non_scaling"))
    norms = [m for m in module.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms and all(m.weight is None and m.bias is not None for m in norms)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model.objective=scm", "model.edm=null"), "noise_level=angle"),
        (("model.objective=ect",), "'edm' is not read"),
        (("model.scm={}",), "'scm' is not read"),
        (("model.unet.head_channels=7",), "does not divide"),
        (("model.sigma_min=90",), "not below sigma_max"),
        (("model.unet.norm=batch",), "group"),
        (("model.middle=90",), "not between"),
    ],
)
def test_configs_that_cannot_be_are_told(words, says):
    with pytest.raises(UserError, match=says):
        load("cd4mt_demo_edm", *words)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("cd4mt*.yaml")))
def test_every_config_takes_a_step(name):
    """With its own data, objective and layout; the network is narrowed."""
    module = build(load(name, "model.unet.channels=16", "model.unet.head_channels=8", "model.unet.res_blocks=1"))
    logged = module.optimize(PlainEngine(module), module.example_batch(2), module.configure_optimizers(), 1)
    assert all(torch.isfinite(value) for value in logged.values())


def test_latents_with_a_frequency_axis_come_back():
    module = build(load("cd4mt_demo"))
    stored = module.example_batch(2)["stems_latent"]
    assert stored.shape == (2, 4, 8, 50, 16) and facts.latent_shape(module.data) == (4, 128, 50)
    arranged = facts.arranged(stored)
    assert torch.equal(facts.as_stored(arranged, module.data), stored)
    assert torch.equal(arranged[1, 2, 5 * 16 + 3], stored[1, 2, 5, :, 3])


def test_one_scale_a_stem_keeps_the_proportions_of_its_channels():
    data = facts.typical_data(load("cd4mt_demo"))
    deviation = torch.tensor([4.0, 3.0] + [0.0] * 6)
    data["latent"]["fields"]["stems_latent"] |= {"std": deviation.expand(4, 8).tolist(), "mean": [[1.0] * 8] * 4}
    scale = facts.standardisation(data, load("cd4mt_demo").model)
    assert scale.mean.shape == (4, 128, 1) and scale.mean.unique().tolist() == [1.0]
    torch.testing.assert_close(scale.std, torch.full((4, 128, 1), 2 * math.sqrt(25 / 8)))
    each = facts.standardisation(data, load("cd4mt_demo", "model.standardise=channel").model)
    assert each.std[0, ::16, 0].tolist() == [8.0, 6.0, *[0.0] * 6]


def test_noise_goes_to_the_nearest_data_of_its_group_and_of_no_other():
    clean = torch.randn(8, 4, 6, 5)
    order = torch.tensor([2, 0, 3, 1, 5, 4, 7, 6])
    near = clean[order] + 0.01 * torch.randn_like(clean)
    found = coupled(clean, near, 4)
    torch.testing.assert_close(found, clean, atol=0.1, rtol=0)
    across = near.roll(4, 0)
    assert sorted(coupled(clean, across, 4).flatten(1).sum(1)[:4].tolist()) == sorted(
        across.flatten(1).sum(1)[:4].tolist()
    )
    with pytest.raises(UserError, match="coupling_group is 3"):
        coupled(clean, near, 3)


def test_coupling_is_of_training_and_changes_no_validation():
    plain, coupling = (build(tiny("ect", *more)) for more in ((), ("model.coupling_group=4",)))
    batch = plain.example_batch(8)
    assert not torch.equal(plain.training_step(batch, 30)["loss"], coupling.training_step(batch, 30)["loss"])
    assert torch.equal(plain.validation_step(batch, 30)["loss"], coupling.validation_step(batch, 30)["loss"])


def test_under_diffusions_weight_tuning_begins_as_diffusion_to_the_letter():
    edm = build(tiny("edm", "model.edm={noise: {mean: -1.1, deviation: 2.0}}"))
    ect = build(tiny("ect", "model.ect={diffusion_steps: 5, weight: snr}", "model.distance=l2"))
    weight = objectives._snr_weight(edm.model_config, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(weight, torch.tensor([8.0, 5.0]))  # 1 / sigma^2 + 1 / 0.25
    batch = edm.example_batch(4)
    torch.testing.assert_close(edm.training_step(batch, 3)["loss"], ect.training_step(batch, 3)["loss"])


def test_the_shape_table_begins_with_the_waveforms(capsys):
    with torch.device("meta"):
        module = build(load("cd4mt"))
    said = " ".join(module.before_the_batch())
    assert "(B, 4, 524288)" in said and "(B, 4, 64, 127)" in said and "(B, 256, 127)" in said
    show(load("cd4mt_demo", *TINY), None)
    assert "(B, 4, 131072)" in capsys.readouterr().out


def test_data_that_cannot_be_is_told():
    config = load("cd4mt_demo")
    data = TrainModule.typical_data(config)
    with pytest.raises(UserError, match="holds none"):
        TrainModule(config, {k: v for k, v in data.items() if k != "latent"})
    with pytest.raises(UserError, match="50 frames"):
        TrainModule(load("cd4mt_demo", "model.frames=51"), data)
    with pytest.raises(UserError, match="strategy=ddp"):
        TrainModule(tiny("cm", "trainer.strategy=deepspeed"), data)


@pytest.mark.parametrize("name", ["cm", "ect", "scm"])
def test_teachers_and_tangents_are_what_they_were_where_the_student_computes_again(name):
    found = []
    for again in (False, True):
        module = build(tiny(name, "data.batch_size=2", "model.unet.dropout=0.1")).train()
        if again:
            compute_again(module.recomputed())
        torch.manual_seed(1)  # of dropout
        module.training_step(module.example_batch(2), 1)["loss"].backward()
        found.append([p.grad for p in module.denoiser.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
