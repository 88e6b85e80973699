"""What a job takes of its node: counted are its own processes and GPUs, and the training has nothing to do with it."""

# ruff: noqa: N802  (a library's names)
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from monitoring import system
from monitoring.run_rows import RunRows
from monitoring.system import Gpus, Host, Means, system_file, watched
from pipeline.journal import Journal
from pipeline.world import World
from tests.monitoring.run_factory import attempt, make_run
from tests.monitoring.test_dashboard import wait_for

BUSY = "import time; block = bytearray(150_000_000); print(flush=True)\nwhile True: pass"


def test_the_jobs_own_processes_are_counted_and_no_other():
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    try:
        child.stdout.readline(), other.stdout.readline()
        job = Host(child.pid)
        began, before = time.monotonic(), sum(psutil.Process(child.pid).cpu_times()[:2])
        time.sleep(0.3)
        found = job.look()
        spent = (sum(psutil.Process(child.pid).cpu_times()[:2]) - before) / (time.monotonic() - began)
        share = 100 * spent / len(os.sched_getaffinity(0))
        assert abs(found["cpu_utilization_percentage"] - share) < 15
        assert 150 < found["system_memory_usage_megabytes"] < 290, "the other one's 150 MB are not ours"
        assert {p.pid for p in job.processes()} == {child.pid}
        assert child.pid in {p.pid for p in Host(os.getpid()).processes()}
    finally:
        child.kill(), other.kill()
        child.communicate(), other.communicate()
    assert job.look()["system_memory_usage_megabytes"] == 0, "it has ended, and that ends nothing here"


class Library:
    """NVIDIA's library with four devices; nothing on this machine can stand for it."""

    NVMLError = RuntimeError
    devices = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 4

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= 4:
            raise RuntimeError("not found")
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.devices:
            raise RuntimeError("not found")
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return [SimpleNamespace(pid=os.getpid() if device == "GPU-c" else 1)]

    def nvmlDeviceGetMemoryInfo(self, device):
        return SimpleNamespace(used=40_000_000_000, total=80_000_000_000)

    def nvmlDeviceGetUtilizationRates(self, device):
        return SimpleNamespace(gpu=self.devices.index(device))

    def nvmlDeviceGetPowerUsage(self, device):
        if device == "GPU-d":
            raise RuntimeError("not supported")
        return 350_000

    def nvmlDeviceGetEnforcedPowerLimit(self, device):
        return 700_000


@pytest.mark.parametrize(
    ("given", "own"),
    [("1,2", [1, 2]), ("GPU-d", [3]), ("", []), ("-1", []), ("7", []), (None, [2])],
    ids=["numbers", "a name", "none", "none by number", "no such one", "where a process of ours runs"],
)
def test_only_the_jobs_own_gpus_are_asked(monkeypatch, given, own):
    monkeypatch.setitem(sys.modules, "pynvml", Library())
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    found = Gpus(Host(os.getpid())).look()
    assert [found[f"gpu_{n}_utilization_percentage"] for n in range(len(own))] == own
    assert not own or (found["gpu_0_memory_usage_megabytes"] == 40_000 and found["gpu_0_memory_usage_percentage"] == 50)
    powers = {name: value for name, value in found.items() if "power" in name}
    assert set(powers.values()) == (set() if own in ([], [3]) else {350.0, 50.0}), (
        "what a device does not tell is left out"
    )


def test_without_the_library_one_line_and_no_gpus(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpus(Host(os.getpid())).look() == {}
    assert "nvidia-ml-py is not installed" in capsys.readouterr().err


def test_a_line_is_the_mean_of_its_looks():
    means = Means()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": value})
    means.add({"b": 1.0})
    assert means.take() == {"a": 3.0, "b": 1.0} and means.take() == {}


def test_it_is_measured_beside_the_training_and_ends_with_it(tmp_path):
    run = make_run(tmp_path)
    attempt(run, 0, 5)
    run.beat(step=5)
    before = set(psutil.Process().children())
    with watched(run, World(rank=1, size=2, local_rank=1, local_size=2)):
        assert set(psutil.Process().children()) == before, "once a node"
    with watched(run, World()):
        (beside,) = set(psutil.Process().children()) - before
        file = system_file(run, 1, 0)
        wait_for(lambda: file.exists() and len(file.read_text().splitlines()) == 2, 120)
    beside.wait(60)
    head, line, *_ = map(json.loads, file.read_text().splitlines())
    assert head["attempt"] == 1 and line["step"] == 5
    assert line["metrics"]["system/system_memory_usage_megabytes"] > 10
    assert (run.logs / "system_0.log").read_text().startswith("no system metrics of GPUs")


def test_what_was_measured_stays_where_the_training_went_back(tmp_path):
    run = make_run(tmp_path)
    attempt(run, 0, 30)
    journal = Journal(system_file(run, 1, 0), 1, 0)
    journal.log(25, {"system/cpu_utilization_percentage": 50.0})
    reader = RunRows(run)
    assert len(reader.read().new) == 61
    attempt(run, 10, 12)
    assert len(reader.read().gone) == 40
    journal.log(12, {"system/cpu_utilization_percentage": 70.0})
    journal.close()
    assert [row[0] for row in reader.read().new] == ["system/cpu_utilization_percentage"]
    assert sorted(row[2] for row in reader.rows if row[0].startswith("system/")) == [12, 25]


def test_the_trainings_side_of_it_needs_next_to_nothing():
    program = "import sys, monitoring.system; sys.exit(bool({'torch', 'pynvml', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    assert system.EVERY < system.LINE
