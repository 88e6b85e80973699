"""What NVML says of one GPU, by recorded answers: there is no GPU where this runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pipeline.gpus import Device, Gpu, own_gpu
from pipeline.pulse import gpus_of


class Recorded:
    """NVML's functions, answering from a list; None: this device does not tell it."""

    class NVMLError(Exception):
        pass

    def __init__(self, **answers) -> None:
        self._answers = answers

    def __getattr__(self, function: str):
        def answer(handle: object):
            found = self._answers.get(function)
            value = found.pop(0) if found else None
            if value is None:
                raise self.NVMLError("Not Supported")
            return value

        return answer


def rates(*uses: int):
    return [SimpleNamespace(gpu=use, memory=1) for use in uses]


def test_a_gpu_tells_its_use_over_five_minutes_its_memory_its_power_and_the_energy_since_the_first_look():
    memory = SimpleNamespace(used=60 << 30, total=80 << 30)
    library = Recorded(
        nvmlDeviceGetUtilizationRates=rates(0, 100, 50, 90),
        nvmlDeviceGetMemoryInfo=[memory] * 4,
        nvmlDeviceGetPowerUsage=[100_000, 400_000, 300_000, 350_000],
        nvmlDeviceGetTotalEnergyConsumption=[7_000_000, 7_500_000, 8_000_000, 9_000_000],
    )
    gpu = Gpu(Device(library, "handle"))
    first = gpu.look(now=0.0)
    assert (first.use, first.energy, first.power, first.seconds) == (0.0, 0.0, 100.0, 0.0)
    assert gpu.look(now=10.0).use == 0.5
    gpu.look(now=250.0)
    last = gpu.look(now=305.0)
    assert last.use == pytest.approx((1.0 + 0.5 + 0.9) / 3), "what is older than five minutes is forgotten"
    assert (last.memory, last.total, last.energy, last.seconds) == (60 << 30, 80 << 30, 2000.0, 295.0)


def test_without_a_counter_energy_is_power_times_time_and_what_a_device_does_not_tell_is_not_known():
    gpu = Gpu(Device(Recorded(nvmlDeviceGetPowerUsage=[100_000, 300_000, None]), "handle"))
    assert gpu.look(now=0.0).energy == 0.0
    assert gpu.look(now=10.0).energy == pytest.approx(2000.0)
    silent = gpu.look(now=20.0)
    assert (silent.use, silent.memory, silent.power, silent.energy) == (None, None, None, None)


def test_a_driver_that_was_loaded_anew_gives_nothing_back():
    gpu = Gpu(Device(Recorded(nvmlDeviceGetTotalEnergyConsumption=[9_000_000, 5_000]), "handle"))
    gpu.look(now=0.0)
    assert gpu.look(now=1.0).energy == 0.0


def test_a_process_on_a_cpu_has_no_gpu_to_show():
    assert own_gpu(torch.device("cpu")) is None
    assert gpus_of([{"rank": 0, "gpu": None}, {"rank": 1}]) is None


def test_all_gpus_come_to_one_line():
    here = {"use": 0.9, "memory": 10, "total": 100, "power": 300.0, "energy": 3.6e6}
    there = {"use": None, "memory": 80, "total": 100, "power": None, "energy": 1.8e6}
    line = gpus_of([{"gpu": here}, {"gpu": there}])
    assert line == {
        "count": 2, "use": 0.9, "memory": 80, "memory_total": 100, "power_w": 300.0, "energy_kwh": 1.5,
    }  # fmt: skip
