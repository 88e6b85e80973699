"""Memory: a part's activations computed again by the real loop, and what each rank has held at most, from its file to the journal."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

import tests.pipeline.test_trainer as trainer_tests
from pipeline import memory
from pipeline.arithmetic import Count
from pipeline.journal import read_journals
from pipeline.memory import GIB, held, largest
from pipeline.pulse import Pulse, Pulses
from pipeline.recompute import compute_again
from pipeline.runs import RunFolder
from pipeline.world import World
from tests.conftest import ROOT
from tests.pipeline.test_trainer import Line

lab = trainer_tests.lab
CPU = torch.device("cpu")


class Layers(Line):
    """The line behind a layer with dropout, which counts how often it is computed."""

    class Hidden(nn.Linear):
        times = 0

        def forward(self, x):
            self.times += 1
            return nn.functional.dropout(super().forward(x).relu(), 0.2, self.training)

    def __init__(self, *words):
        super().__init__(*words)
        self.hidden = self.Hidden(15, 15)

    def _error(self, x, target):
        return super()._error(self.hidden(x.flatten(1)), target)

    def recomputed(self):
        yield self.hidden


def test_a_run_whose_activations_are_computed_again_is_the_same_run(lab):
    plain, keeping = lab("plain", kind=Layers)
    sparing, again = lab("sparing", kind=Layers, activation_checkpointing=True)
    for trainer in (keeping, again):
        trainer.fit()
    assert trainer_tests.final(sparing) == trainer_tests.final(plain)
    assert again.module.hidden.times == keeping.module.hidden.times + 20, "in each of 20 steps, and not in validation"
    flops = [next(e for e in run.history() if e["event"] == "first_step")["flops"] for run in (plain, sparing)]
    assert flops[0] == flops[1], "what is computed twice is counted once: MFU is of the model's arithmetic"


def test_a_copy_of_a_part_computes_with_its_own_weights():
    part = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    compute_again([part])
    copy = deepcopy(part)
    nn.init.zeros_(copy[0].weight)
    nn.init.zeros_(copy[0].bias)
    x = torch.randn(2, 3, requires_grad=True)
    assert not copy(x).any() and part(x).all()
    with Count() as count:
        part(x).sum().backward()
    assert count.flops == 3 * (2 * 2 * 3 * 3), "forward, and the gradients of weight and input"


def test_a_process_tells_what_it_holds_and_has_held():
    """Memory that is given back is no longer held, and a parent's is none of its child's."""
    ballast = bytearray(300 << 20)
    code = """if True:
        import json, torch
        from pipeline.memory import held
        cpu = torch.device("cpu")
        before = held(cpu)
        large = torch.ones(200 << 18)
        full = held(cpu)
        del large
        print(json.dumps([before, full, held(cpu)]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    before, full, after = json.loads(done.stdout)
    mebibyte = 1 << 20  # the kernel counts by batches of pages: within some of them it is right
    assert len(ballast) and before["peak"] < before["resident"] + 100 * mebibyte, "not the parent's"
    assert full["resident"] > before["resident"] + 190 * mebibyte > after["resident"]
    assert full["peak"] == pytest.approx(full["resident"], abs=5 * mebibyte)
    assert after["peak"] == pytest.approx(full["peak"], abs=5 * mebibyte)


def test_of_a_gpu_the_allocator_tells(monkeypatch):
    said = {"allocated_bytes.all.peak": 5, "reserved_bytes.all.peak": 7, "allocated_bytes.all.current": 3}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: said)
    assert held(torch.device("cuda", 0)) == {"peak": 5, "peak_reserved": 7}


def test_the_largest_of_all_ranks_is_journalled(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "toy" / "00000000")
    run.create()
    worlds = [World(rank, 2, rank, 2, 0) for rank in (0, 1)]
    mine, theirs = (Pulse(run, world, CPU) for world in worlds)
    pulses = Pulses(run, worlds[0], mine)
    monkeypatch.setattr(memory, "_of_process", lambda: {"peak": 3 * GIB, "resident": GIB})
    theirs.write()
    monkeypatch.setattr(memory, "_of_process", lambda: {"peak": GIB, "resident": 2 * GIB})
    assert pulses.memory() == {"memory/peak_gib": 1.0, "memory/resident_gib": 2.0}, "the others have not been read yet"
    pulses.read()
    assert pulses.memory() == {"memory/peak_gib": 3.0, "memory/resident_gib": 2.0}
    assert largest([{"peak": 1}, None]) == {"memory/peak_gib": pytest.approx(1 / GIB)}, (
        "a rank of an older code says nothing"
    )


def test_every_logged_step_says_what_was_held(lab):
    run, trainer = lab(max_steps=3)
    trainer.fit()
    points = [p.metrics for p in read_journals(run.metrics) if "train/loss" in p.metrics]
    peaks = [metrics["memory/peak_gib"] for metrics in points]
    assert len(peaks) == 3 and peaks == sorted(peaks) and 0.05 < peaks[0] < 20
    assert all(0 < metrics["memory/resident_gib"] <= metrics["memory/peak_gib"] * 1.01 for metrics in points)
