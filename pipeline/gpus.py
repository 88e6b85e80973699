"""This process's own GPU, asked of the driver's library (NVML): how busy it is, its memory, its power and the energy it has used.

Only the GPU that the process trains on is looked at, found by its UUID: its number would depend on CUDA_VISIBLE_DEVICES. Where there is no
GPU, no driver or no ``nvidia-ml-py`` there is nothing to show, and what a device does not tell (a MIG slice its use) is None. Called by
the heartbeat's thread, never by a step.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

LOOK_BACK = 300.0  # seconds over which use is averaged: NVML itself looks back for less than one


@dataclass(frozen=True)
class GpuState:
    """``use``: share of the last five minutes in which a kernel ran, None before there were any; ``memory`` and ``total`` in bytes.

    ``power`` in watts; ``energy`` in joules since the first look.
    """

    use: float | None
    memory: int | None
    total: int | None
    power: float | None
    energy: float | None
    seconds: float  # over which ``use`` is averaged


class Gpu:
    """One GPU. ``library``: NVML's functions (``pynvml``); ``handle``: its name for the device."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._nvml, self._handle = library, handle
        self._uses: deque[tuple[float, float]] = deque()
        self._counter: float | None = None  # the device's own at the first look, joules
        self._energy = 0.0  # integrated from power, where the device has no counter
        self._last: tuple[float, float] | None = None  # time and watts of the look before

    def look(self, now: float | None = None) -> GpuState:
        now = time.monotonic() if now is None else now
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        power = None if milliwatts is None else milliwatts / 1000
        if rates is not None:
            self._uses.append((now, rates.gpu / 100))
        while self._uses and self._uses[0][0] < now - LOOK_BACK:
            self._uses.popleft()
        return GpuState(
            use=sum(use for _, use in self._uses) / len(self._uses) if self._uses else None,
            memory=None if memory is None else int(memory.used),
            total=None if memory is None else int(memory.total),
            power=power,
            energy=self._used(now, power),
            seconds=now - self._uses[0][0] if self._uses else 0.0,
        )

    def _used(self, now: float, power: float | None) -> float | None:
        """Joules since the first look: by the device's own counter, else power times time (trapezia)."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        if millijoules is not None:
            self._counter = millijoules / 1000 if self._counter is None else self._counter
            return max(0.0, millijoules / 1000 - self._counter)  # the counter restarts with the driver
        if power is None:
            return None
        if self._last is not None:
            before, watts = self._last
            self._energy += (now - before) * (watts + power) / 2
        self._last = (now, power)
        return self._energy

    def _ask(self, function: str) -> Any:
        """What the driver says; None where this device does not tell it."""
        try:
            return getattr(self._nvml, function)(self._handle)
        except self._nvml.NVMLError:
            return None


def own_gpu(device: torch.device) -> Gpu | None:
    """The GPU that ``device`` is; None where it is none, or nobody can be asked about it."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("MIG-") else f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return None
