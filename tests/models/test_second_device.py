"""Every system on a device that is not the host: nothing lies on the wrong one, no step makes the host wait, the numbers are the host's."""

from __future__ import annotations

import pytest
import torch

from models.cqtml.music import note_onsets
from pipeline.engine import to_device
from tests.models.helpers import CONFIGS, PlainEngine, build, load
from tests.second_device import TwoDevices, apart, second_device

BATCH = 4
# Of the demo's data, whose voices have few notes, each batch is asked whether it knows them; all notes, as in dismix.yaml, ask nothing.
MAY_WAIT = {"dismix_ldm_demo": "classes, training.py"}


@pytest.fixture(scope="module")
def there():
    with apart() as process:
        yield lambda function, *args: process.submit(function, *args).result()


def trainings() -> list[tuple[str, tuple[str, ...]]]:
    """Every demo config that trains, and CD4MT's objectives without a demo."""
    names = sorted(path.stem for path in CONFIGS.glob("*_demo*.yaml") if not path.stem.endswith("_pairs"))
    edm = ("cd4mt_demo_edm", ("model.edm=null",))
    others = (
        ("model.objective=cm", "model.cm={steps: 40, last: 10}"),
        ("model.objective=ict", "model.ict={steps: 40}"),
        ("model.objective=scm", "model.noise_level=angle", "model.scm={warmup_steps: 5}"),
    )
    return [(name, ()) for name in names] + [(edm[0], edm[1] + other) for other in others]


@pytest.mark.parametrize(("name", "how"), trainings(), ids=lambda x: x if isinstance(x, str) else x and x[1])
def test_a_step_lies_on_one_device_and_never_makes_the_host_wait(there, name, how):
    waits, losses, expected, checked = there(steps, name, how)
    assert [wait for wait in waits if MAY_WAIT.get(name, "nowhere") not in wait] == []
    assert losses == pytest.approx(expected, rel=1e-3) and checked.keys() >= {"loss"}


def steps(name: str, how: tuple[str, ...]) -> tuple[list[str], dict[int, float], dict[int, float], dict[str, float]]:
    """What made the host wait in a step, losses by step there and here, and the figures of a validation step there."""
    module = build(load(name, f"data.batch_size={BATCH}", *_groups_of_four(name), *how))
    batch, late = (
        module.example_batch(BATCH),
        module.config.trainer.max_steps,
    )  # a late step: other stages of an objective
    expected = {step: module.training_step(batch, step)["loss"].item() for step in (1, late)}
    with second_device() as (device, waits):
        module.to(device)
        moved = to_device(batch, device)
        optimizers = module.configure_optimizers()
        losses = {step: module.training_step(moved, step)["loss"].item() for step in (1, late)}
        del waits[:]  # tables that are made once are made by now
        module.optimize(PlainEngine(module), moved, optimizers, 2)
        waited = list(waits)
        checked = {n: v.item() for n, v in module.validation_step(moved, 1).items()}
    return waited, losses, expected, checked


def _groups_of_four(name: str) -> list[str]:
    return ["model.barlow_twins_group=4"] if "barlow_twins_group" in type(load(name).model).model_fields else []


def test_labelled_notes_never_make_the_host_wait(there):
    waits, found, expected = there(onsets_of_labels)
    assert waits == [] and torch.equal(found, expected) and expected.sum() == 2


def onsets_of_labels() -> tuple[list[str], torch.Tensor, torch.Tensor]:
    notes, count = torch.tensor([[[0, 0, 30, 0], [900, 0, 99, 0]]]), torch.tensor([2])
    with second_device() as (device, waits):
        moved = notes.to(device), count.to(device)
        del waits[:]
        found = note_onsets(*moved, 40)
        waited = list(waits)
        return waited, found.cpu(), note_onsets(notes, count, 40)


def test_this_device_refuses_what_a_gpu_refuses(there):
    there(refusals)


def refusals() -> None:
    with second_device() as (device, waits):
        ones = torch.ones(3, device=device)
        for mix in (lambda: ones + torch.ones(3), lambda: torch.stack([ones, torch.ones(3)])):
            with pytest.raises(TwoDevices, match="of the host among tensors of gpu:0"):
                mix()
        with pytest.raises(TwoDevices, match="a generator of cpu draws on gpu"):
            torch.rand(3, device=device, generator=torch.Generator())
        with pytest.raises(TypeError, match="to numpy"):
            ones.numpy()
        assert not waits and (ones + torch.tensor(1.0)).device == device
        for wait in (ones.sum().item, ones.tolist, ones.cpu, ones.nonzero, lambda: ones[ones > 0]):
            wait()
        assert len(waits) == 5, waits
        torch.ones(3).to(device, non_blocking=True)
        assert len(waits) == 5, waits
