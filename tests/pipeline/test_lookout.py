"""Who looks out for a run: the clock of a rank's own work, slow ranks, idle GPUs, a disk that fills, a time limit too near."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple

import pytest

from pipeline import lookout
from pipeline.deadline import Deadline
from pipeline.lookout import Lookout
from pipeline.pace import DevicePace, Pace
from pipeline.pulse import Pulse, Pulses, straggler
from pipeline.runs import RunFolder
from pipeline.world import World


def pulse(rank: int, own: float | None, step: float = 1.0, **gpu: float) -> dict:
    return {"rank": rank, "node": f"n{rank}", "own_s": own, "step_s": step, "gpu": gpu or None}


class Told:
    """What ranks would have written."""

    def __init__(self, *pulses: dict) -> None:
        self.pulses = list(pulses)

    def read(self) -> list[dict]:
        return self.pulses


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "toy" / "00000000")
    run.create()
    return run


def warnings(run: RunFolder) -> list[tuple]:
    return [(e["what"], e.get("rank"), e.get("node")) for e in run.history() if e["event"] == "warning"]


def test_waiting_for_others_is_not_a_ranks_own_work():
    pace = Pace()
    pace.begin(waited=0.5)
    time.sleep(0.01)
    with pace.meeting():
        time.sleep(0.5)
    assert 0.51 <= pace.own() < 1.0


class Event:
    """A device's event: it has passed when the device's clock is there."""

    clock = 0.0

    def record(self) -> None:
        self.at = Event.clock + 0.2  # the device is behind the program

    def query(self) -> bool:
        return Event.clock >= self.at

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at - self.at)


def test_on_a_device_its_own_events_tell_and_nothing_waits_for_them():
    pace, found = DevicePace(Event), []
    for _ in range(4):
        pace.begin(waited=0.05)
        Event.clock += 0.1  # the forward
        for _ in range(2):  # a GAN's ranks meet twice
            with pace.meeting():
                Event.clock += 0.03
        found.append(pace.own())
    assert found == [None, pytest.approx(0.15), None, pytest.approx(0.15)]


@pytest.mark.parametrize(
    ("pulses", "slow"),
    [
        ([pulse(0, 0.2), pulse(1, 0.5)], 1),
        ([pulse(0, 0.6), pulse(1, 0.2), pulse(2, 0.21), pulse(3, 0.19)], 0),
        ([pulse(0, 0.2), pulse(1, 0.22)], None),  # alike
        ([pulse(0, 0.01), pulse(1, 0.04)], None),  # four times as long, and nothing beside a whole step
        ([pulse(0, 0.2), pulse(1, None)], None),  # not told yet
        ([pulse(0, 0.2)], None),
        ([], None),
    ],
)
def test_who_needs_far_longer_than_the_others_holds_them_up(pulses, slow):
    found = straggler(pulses)
    assert (found.rank if found else None) == slow


def test_a_slow_rank_is_history_when_it_lasts_and_is_told_once(run, monkeypatch):
    told = Told(pulse(0, 0.2), pulse(1, 0.5))
    look = Lookout(run, 1, told, Deadline(None)).look
    assert look(None)["warnings"] == [] and warnings(run) == []
    monkeypatch.setattr(lookout, "PERSISTS", 0.0)
    for _ in range(2):
        assert look(None)["warnings"] == [
            "rank 1 on node n1 holds the others up: 0.5 s of its own a step, theirs take 0.2 s"
        ]
    assert warnings(run) == [("slow_rank", 1, "n1")]
    told.pulses[1]["own_s"] = 0.2
    assert look(None)["warnings"] == [], "it caught up"


def test_idle_gpus_are_named_and_where_all_are_idle_that_is_said(run):
    busy, idle = {"use": 0.9, "seconds": 300.0}, {"use": 0.01, "seconds": 300.0}
    rest = {"memory": None, "total": None, "power": None, "energy": None}
    told = Told(pulse(0, 0.2, **busy, **rest), pulse(1, 0.2, **idle, **rest))
    look = Lookout(run, 1, told, Deadline(None)).look
    assert look(None)["warnings"] == ["the GPU of rank 1 on node n1 is idle: 1% busy over the last five minutes"]
    told.pulses[0] = pulse(0, 0.2, **idle, **rest)
    assert look(None)["warnings"] == ["all GPUs are idle: 1% busy over the last five minutes"]
    told.pulses[:] = [pulse(0, 0.2, **{**idle, "seconds": 60.0}, **rest)]
    assert look(None)["warnings"] == [], "it has only begun"
    assert warnings(run) == [("gpu_idle", 1, "n1"), ("gpu_idle", None, None)]


def test_a_disk_without_room_for_the_next_checkpoints_is_told_before_one_fails(run, monkeypatch):
    (run.checkpoints / "step_000000005").mkdir()
    (run.checkpoints / "step_000000005" / "model.safetensors").write_bytes(bytes(1000))
    usage, free = namedtuple("usage", "total used free"), [lookout.SPARE + 2999]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, free[0]))
    assert "the disk is filling: 1.1 GB free" in Lookout(run, 1, Told(), Deadline(None)).look(None)["warnings"][0]
    assert warnings(run) == [("disk", None, None)]
    free[0] += 1
    assert Lookout(run, 2, Told(), Deadline(None)).look(None)["warnings"] == []


def test_a_job_that_has_no_time_for_a_step_and_its_save_is_told(run):
    now = time.time()
    deadline = Deadline(now + 100, slowest_step=20, slowest_save=15)  # 10 + 2 x 20 + 2 x 15 before the end, and a step
    assert Lookout(run, 1, Told(), deadline).look(now)["warnings"] == []
    deadline.saved(16)
    (sentence,) = Lookout(run, 1, Told(), deadline).look(now)["warnings"]
    assert "need 2 s more than this job has" in sentence and "--time" in sentence
    assert Lookout(run, 1, Told(), deadline).look(None)["warnings"] == [], "it has not made a step yet"
    assert warnings(run) == [("time_limit", None, None)]


def test_rank_0_reads_what_the_others_wrote_and_nothing_of_an_earlier_attempt(run):
    import torch

    cpu = torch.device("cpu")
    mine, theirs = (Pulse(run, World(rank, 2, rank, 2, 0), cpu) for rank in (0, 1))
    for step in range(1, 9):
        theirs.stepped(step, 0.3 if step > 1 else None)
    theirs.write()
    run.rank_file(5).write_text("{torn")
    pulses = Pulses(run, World(0, 2, 0, 2, 0), mine)
    assert [(p["rank"], p["step"], p["own_s"]) for p in pulses.read()] == [(0, 0, None), (1, 8, 0.3)]
    pulses = Pulses(run, World(0, 2, 0, 2, 0), mine)
    pulses.begin()
    assert [p["rank"] for p in pulses.read()] == [0] and not list(run.ranks.iterdir())
