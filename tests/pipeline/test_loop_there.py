"""The loop on a device that is not the host: what is trained lies there, only what is logged or saved comes back, and it resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning.fabric.accelerators.cpu import CPUAccelerator

from pipeline import distributed
from pipeline.control import Stop
from pipeline.world import World
from tests.pipeline.shard_factory import write_dataset
from tests.pipeline.stack import trainer_of
from tests.second_device import apart, second_device

SILENT = {"log_every": 1000, "save_every": 1000, "validate_every": 1000}


@pytest.fixture(scope="module")
def there():
    with apart() as process:
        yield lambda *args, **section: process.submit(trained, *args, **section).result()


@pytest.fixture
def data(tmp_path) -> str:
    write_dataset(tmp_path / "data", [64])
    return str(write_dataset(tmp_path / "data", [16], "valid").folder)


@contextmanager
def fabric_on(device: torch.device) -> Iterator[None]:
    """A launched Fabric has its one process there; Lightning knows no accelerator of that name."""
    single = distributed.SingleDeviceStrategy
    with (
        mock.patch.object(distributed, "SingleDeviceStrategy", lambda _: single(device)),
        mock.patch.object(CPUAccelerator, "setup_device", lambda self, device: None),
        mock.patch.dict("pipeline.arithmetic.WIDTH", {device.type: 64}),
    ):
        yield


def trained(
    data: str, path: str, **section: object
) -> tuple[list[str], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One attempt there: what made the host wait, weights and their average."""
    with second_device() as (device, waits), fabric_on(device):
        trainer = trainer_of(World(0, 1, 0, 1, 0), data, path, **section)
        assert trainer.fit() is Stop.NO
        parts = trainer.state._module.state_dict(), trainer.state._ema.state_dict()
        assert all(t.device == device for part in parts for t in tensors(part).values())
        waited = list(waits)
        return waited, *({n: t.cpu() for n, t in tensors(part).items()} for part in parts)


def tensors(tree: dict) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tree.items() if isinstance(t, torch.Tensor)}


def trained_here(data: str, path: Path, **section: object) -> dict[str, torch.Tensor]:
    trainer = trainer_of(World(0, 1, 0, 1, 0), data, str(path), **section)
    assert trainer.fit() is Stop.NO
    return tensors(trainer.state._module.state_dict())


def test_what_is_trained_there_is_what_is_trained_here(there, data, tmp_path):
    _, found, average = there(data, str(tmp_path / "there"))
    expected = trained_here(data, tmp_path / "here")
    assert found.keys() == expected.keys() and average
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("section", [{}, {"micro_batch": 4}], ids=["whole", "in micro-batches"])
def test_the_host_waits_as_often_however_many_steps_there_are(there, data, tmp_path, section):
    few, many = (there(data, str(tmp_path / str(steps)), max_steps=steps, **SILENT, **section)[0] for steps in (10, 40))
    assert few == many and 0 < len(few) < 40


def test_a_run_in_two_pieces_has_the_bits_of_one(there, data, tmp_path):
    _, whole, average = there(data, str(tmp_path / "whole"), max_steps=12)
    there(data, str(tmp_path / "pieces"), max_steps=8)
    _, pieces, average_of_pieces = there(data, str(tmp_path / "pieces"), max_steps=12)
    for one, other in ((whole, pieces), (average, average_of_pieces)):
        assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
