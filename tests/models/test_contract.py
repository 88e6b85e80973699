"""What every system promises the training loop: found by its folder, checked on its demo config."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

from models import registry
from pipeline.compiling import let_compile
from pipeline.config import apply_overrides, parse_config
from pipeline.distributed import Agreement, make_fabric
from pipeline.recompute import compute_again
from pipeline.saving import Saver
from pipeline.train_state import Still, make_train_state
from pipeline.world import World
from tests.models.helpers import CONFIGS, Names, PlainEngine, Waits, build, demo_configs, load, train

BATCH = 4


@pytest.fixture(params=demo_configs())
def config(request):
    overrides = ["data.batch_size=4"]
    if "barlow_twins_group" in type(load(request.param).model).model_fields:
        overrides.append("model.barlow_twins_group=4")
    return load(request.param, *overrides)


@pytest.fixture
def module(config):
    return build(config)


def test_config_survives_being_frozen(config):
    again = parse_config(yaml.safe_load(config.to_yaml()), registry.model_config_class(config.model.system), "frozen")
    assert again.to_yaml() == config.to_yaml()


class Noting:
    """An optimizer that notes which parameters have a gradient when it steps, and moves none."""

    def __init__(self, optimizer, names, moved):
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad
        self._names, self._moved = names, moved

    def step(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._moved |= {self._names[p] for p in parameters if p.grad is not None and p.grad.any()}


def test_a_step_gives_a_finite_loss_and_a_gradient_for_every_tensor(module):
    names, moved = {p: n for n, p in module.named_parameters()}, set()
    noting = {name: Noting(optimizer, names, moved) for name, optimizer in module.configure_optimizers().items()}
    values = module.optimize(PlainEngine(module), module.example_batch(BATCH), noting, 1)
    assert all(torch.isfinite(v) and v.ndim == 0 for v in values.values()) and "loss" in values
    assert len([name for name in values if name.startswith("grad_norm")]) == len(noting)
    assert moved == {n for n, p in module.named_parameters() if p.requires_grad}


def test_no_step_makes_the_host_wait_for_the_device(module):
    optimizers, batch = module.configure_optimizers(), module.example_batch(BATCH)
    module.optimize(PlainEngine(module), batch, optimizers, 1)  # tables that are made once are made now
    with Waits() as waits:
        module.optimize(PlainEngine(module), batch, optimizers, 2)
    assert waits.found == set()


# What torch says it refuses on GPUs under ``trainer.deterministic``, of what a model like these might use (use_deterministic_algorithms).
WITHOUT_AN_ORDER = {
    "reflection_pad1d_backward", "reflection_pad2d_backward", "upsample_linear1d_backward", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward",
    "grid_sampler_2d_backward", "nll_loss_forward", "nll_loss2d_forward", "_ctc_loss_backward", "histc", "put_", "median",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [path.stem for path in CONFIGS.glob("*_demo*.yaml") if not path.stem.endswith("_pairs")]
)
def test_a_step_has_an_order_for_every_sum(name):
    grouped = "barlow_twins_group" in type(load(name).model).model_fields
    module = build(load(name, "data.batch_size=4", *(["model.barlow_twins_group=4"] if grouped else [])))
    with Names() as names:
        module.optimize(PlainEngine(module), module.example_batch(BATCH), module.configure_optimizers(), 1)
    found = names.found & WITHOUT_AN_ORDER | names.of_kind(("cumsum", "cumprod"), torch.is_floating_point)
    assert found == set()


def test_a_step_in_bfloat16_has_the_loss_of_one_in_float32(module):
    """On the batch as it is stored; on a CPU, whose autocast takes no float16."""
    batch = module.example_batch(BATCH)
    exact = module.training_step(batch, 1)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(batch, 1)["loss"]
    loss.backward()
    torch.testing.assert_close(loss.float(), exact.float(), rtol=0.1, atol=0.02)


def test_a_rehearsed_step_leaves_everything_as_it_was(module, config):
    """What the module moves by itself (a teacher, a policy that draws, a spectral norm) included."""
    state = make_train_state(
        make_fabric(config.trainer, World()), module, config, Agreement(World()), Saver(Path("unused"), None)
    )
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(
                1 + 0.01 * torch.rand_like(parameter)
            )  # so that copies of the weights lie apart, as they do under way
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    state.rehearse(PlainEngine(module), module.example_batch(BATCH), 1)
    assert [name for name in before if not torch.equal(before[name], tensors[name])] == []
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_is_compiled_is_one_graph_each_and_computes_the_same(module):
    """Traced and differentiated as for the real compiler, and then run by torch's own kernels: see tests/pipeline/test_compiling.py."""
    batch, still = module.example_batch(BATCH), {name: Still(o) for name, o in module.configure_optimizers().items()}
    begin = {name: value.clone() for name, value in module.state_dict().items()}

    def gradients():
        module.load_state_dict(begin)
        torch.manual_seed(0)
        module.optimize(PlainEngine(module), batch, still, 1)
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    expected = gradients()
    torch.compiler.reset()
    counters.clear()
    parts = list(module.compiled())
    let_compile(parts, backend="aot_eager")
    for again in (False, True):  # with activations computed again, too
        if again:
            compute_again(module.recomputed())
        found = gradients()
        assert len(parts) and counters["stats"]["unique_graphs"] >= len({type(part) for part in parts})
        assert found.keys() == expected.keys()
        for name, value in found.items():
            bound = 1e-4 * float(expected[name].abs().max())
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=bound, msg=name)
    torch.compiler.reset()


def with_dropout(tree, path=""):
    """``--set`` words for every dropout of a model's section."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from with_dropout(value, f"{path}.{name}")
        elif name == "dropout":
            yield f"model{path}.dropout=0.1"


def test_activations_computed_again_are_not_kept_and_change_no_bit(config):
    words = [*with_dropout(config.model.model_dump(mode="json")), "data.batch_size=4"]
    if "barlow_twins_group" in type(config.model).model_fields:
        words.append("model.barlow_twins_group=4")
    config = parse_config(
        apply_overrides(config.model_dump(mode="json"), words), registry.model_config_class(config.model.system), "test"
    )
    found = []
    for again in (False, True):
        module = build(config).train()
        if again:
            compute_again(module.recomputed())
        kept = {}  # storages by their address, which nobody else gets while they are held

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        torch.manual_seed(3)  # of dropout
        optimizers, batch = module.configure_optimizers(), module.example_batch(BATCH)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = train(module, optimizers, [batch, batch], 1)
        found.append(
            (losses, torch.rand(1).item(), module.state_dict(), sum(storage.nbytes() for storage in kept.values()))
        )
    (losses, drawn, weights, plain), (*same, ours, sparing) = found
    assert same == [losses, drawn] and all(torch.equal(value, ours[name]) for name, value in weights.items())
    assert sparing < 0.75 * plain


def test_the_config_names_the_optimizers(module, config):
    """So that a launch can refuse what DeepSpeed cannot step, without importing torch."""
    assert tuple(module.configure_optimizers()) == type(config.model).optimizers


def test_weights_survive_a_file(module, config, tmp_path):
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    other = build(config, seed=1)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    batch = module.example_batch(BATCH)
    with torch.no_grad():
        ours, theirs = module.validation_step(batch, 1), other.validation_step(batch, 1)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_going_on_from_a_state_is_bit_exact(module, config):
    batches = []
    for i in range(4):
        batch = module.example_batch(BATCH)
        batches.append(batch | {"position": batch["position"] + i * BATCH})
    optimizers = module.configure_optimizers()
    train(module, optimizers, batches[:2], 1)
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    states = {name: o.state_dict() for name, o in optimizers.items()}
    resumed = build(config, seed=7)
    resumed.load_state_dict(weights)
    others = resumed.configure_optimizers()
    for name, optimizer in others.items():
        optimizer.load_state_dict({**states[name], "state": {k: dict(v) for k, v in states[name]["state"].items()}})
        for state in optimizer.state.values():
            state.update({k: v.clone() for k, v in state.items() if torch.is_tensor(v)})
    assert train(module, optimizers, batches[2:], 3) == train(resumed, others, batches[2:], 3)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in module.state_dict().items())


def test_one_batch_can_be_learned_by_heart(module):
    batch = module.example_batch(BATCH)
    far = 10**9  # whatever a curriculum does, it is over
    losses = train(module, module.configure_optimizers(), [batch] * 50, far)
    assert losses[-1] < 0.65 * losses[0]
