"""Checkpoints written beside the training."""

import errno
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint, load_newest
from pipeline.config import Keep
from pipeline.saving import Saver
from tests.conftest import ROOT

KEEP = Keep(last=1, best=0)


def make(step: int, weight: torch.Tensor) -> Checkpoint:
    states = {0: {"step": torch.tensor(float(step)), "exp_avg": weight}}
    return Checkpoint(step, {"model": {"w": weight}, "optimizer.main": {"state": states, "lr": 0.1}}, {"losses": [0.5]})


@pytest.fixture
def slow_disk(monkeypatch):
    """Nothing is written before the event is set."""
    gate = threading.Event()
    write = checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda path, tensors: (gate.wait(60), write(path, tensors))[1])
    yield gate
    gate.set()


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path, slow_disk):
    weight = torch.arange(6.0)
    with Saver(tmp_path, KEEP) as saver:
        saver.beside(make(1, weight))
        saver.hold_still()
        weight.fill_(-1.0)  # training goes on
        assert saver.outcome(wait=False) is None
        slow_disk.set()
        saved = saver.outcome(wait=True)
        assert saved.failure is None and saved.step == 1 and saved.seconds > 0
        saver.beside(make(2, weight))  # the same memory again
    loaded = load_newest(tmp_path, set_aside=False)[0]
    assert loaded.step == 2 and loaded.parts["optimizer.main"]["state"][0]["exp_avg"].tolist() == [-1.0] * 6
    assert checkpoint.steps(tmp_path) == [2], "the older one went when the newer was there"


def test_the_first_of_two_is_its_own(tmp_path):
    weight = torch.arange(6.0)
    with Saver(tmp_path, None) as saver:
        for step in (1, 2):
            saver.beside(make(step, weight))
            saver.hold_still()
            weight += 10
            saver.outcome(wait=True)
    first = checkpoint.load(tmp_path / checkpoint.folder_name(1))
    assert first.parts["model"]["w"].tolist() == [0, 1, 2, 3, 4, 5] and first.state["losses"] == [0.5]


def test_another_shape_finds_its_place(tmp_path):
    with Saver(tmp_path, None) as saver:
        for step, shape in ((1, (3,)), (2, (2, 2))):
            saver.beside(make(step, torch.full(shape, float(step))))
            saver.outcome(wait=True)
    assert load_newest(tmp_path, set_aside=False)[0].parts["model"]["w"].tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_a_full_disk_is_told_and_leaves_the_older_one(tmp_path, monkeypatch):
    with Saver(tmp_path, KEEP) as saver:
        saver.beside(make(1, torch.zeros(2)))
        assert saver.outcome(wait=True).failure is None

        def full(path, tensors):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "write_tensors", full)
        saver.beside(make(2, torch.ones(2)))
        assert saver.outcome(wait=True).failure.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.folder_name(1)], "nothing half written stays"


def test_a_mistake_of_ours_is_no_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_tensors", lambda path, tensors: 1 / 0)
    with Saver(tmp_path, KEEP) as saver:
        saver.beside(make(1, torch.zeros(2)))
        with pytest.raises(ZeroDivisionError):
            saver.outcome(wait=True)


KILLED = """
import sys, threading, torch
from pathlib import Path
from pipeline import checkpoint
from tests.pipeline.test_saving import KEEP, Saver, make
folder = Path(sys.argv[1])
with Saver(folder, KEEP) as saver:
    saver.beside(make(1, torch.zeros(8)))
    saver.outcome(wait=True)
    checkpoint.seal = lambda path: (print(path.name, flush=True), threading.Event().wait())
    saver.beside(make(2, torch.ones(8)))
    threading.Event().wait()
"""


def test_a_kill_while_it_is_written_loses_nothing_older(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline().strip() == b"model.safetensors", "it was being written"
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    assert sorted(checkpoint.steps(tmp_path)) == [1] and len(list(tmp_path.iterdir())) == 2
    assert checkpoint.sweep(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1
    assert load_newest(tmp_path, set_aside=True)[0].parts["model"]["w"].sum() == 0


def test_the_block_ends_when_the_disk_has_it(tmp_path, slow_disk):
    with Saver(tmp_path, KEEP) as saver:
        saver.beside(make(1, torch.zeros(2)))
        threading.Timer(0.2, slow_disk.set).start()
        time.sleep(0)
    assert checkpoint.steps(tmp_path) == [1]
