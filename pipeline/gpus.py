"""GPUs, asked of the driver's library (NVML): how busy they are, their memory, their power and the energy they have used.

A rank looks at the one that it trains on (``own_gpu``), found by its UUID: its number would depend on CUDA_VISIBLE_DEVICES; called by the
heartbeat's thread, never by a step. The process beside the training (``monitoring.system``) looks at all of a job on its node. Where there
is no GPU, no driver or no ``nvidia-ml-py`` there is nothing to show, and what a device does not tell (a MIG slice its use) is None.

Imports torch only where a rank asks: what runs beside the training has none.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LOOK_BACK = 300.0  # seconds over which use is averaged: NVML itself looks back for less than one


class NoGpus(Exception):
    """Nobody can be asked about GPUs here; the message says why."""


def load_library() -> Any:
    """NVML's functions, ready to be asked; NoGpus where there is no such library, driver or GPU."""
    try:
        import pynvml
    except ImportError:
        raise NoGpus("nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpus(str(error)) from None
    return pynvml


@dataclass(frozen=True)
class Reading:
    """What a device tells at one moment: ``use`` as a share, ``memory`` and ``total`` in bytes, ``power`` and its ``limit`` in watts."""

    use: float | None
    memory: int | None
    total: int | None
    power: float | None
    limit: float | None


class Device:
    """One GPU. ``library``: NVML's functions; ``handle``: its name for the device."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._nvml, self._handle = library, handle

    def read(self) -> Reading:
        rates = self.ask("nvmlDeviceGetUtilizationRates")
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        milliwatts, limit = self.ask("nvmlDeviceGetPowerUsage"), self.ask("nvmlDeviceGetEnforcedPowerLimit")
        return Reading(
            use=None if rates is None else rates.gpu / 100,
            memory=None if memory is None else int(memory.used),
            total=None if memory is None else int(memory.total),
            power=None if milliwatts is None else milliwatts / 1000,
            limit=None if limit is None else limit / 1000,
        )

    def pids(self) -> set[int]:
        """Processes that compute on it."""
        return {process.pid for process in self.ask("nvmlDeviceGetComputeRunningProcesses") or ()}

    def ask(self, function: str) -> Any:
        """What the driver says; None where this device does not tell it."""
        try:
            return getattr(self._nvml, function)(self._handle)
        except self._nvml.NVMLError:
            return None


def all_devices(library: Any) -> list[Device]:
    return [Device(library, library.nvmlDeviceGetHandleByIndex(n)) for n in range(library.nvmlDeviceGetCount())]


def find_device(library: Any, word: str) -> Device | None:
    """The device of a number or a UUID, as CUDA_VISIBLE_DEVICES names them; None where it is none."""
    try:
        by = library.nvmlDeviceGetHandleByIndex if word.isdigit() else library.nvmlDeviceGetHandleByUUID
        return Device(library, by(int(word) if word.isdigit() else word)) if word else None
    except library.NVMLError:
        return None


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
    """One GPU over time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._uses: deque[tuple[float, float]] = deque()
        self._counter: float | None = None  # the device's own at the first look, joules
        self._energy = 0.0  # integrated from power, where the device has no counter
        self._last: tuple[float, float] | None = None  # time and watts of the look before

    def look(self, now: float | None = None) -> GpuState:
        now = time.monotonic() if now is None else now
        told = self._device.read()
        if told.use is not None:
            self._uses.append((now, told.use))
        while self._uses and self._uses[0][0] < now - LOOK_BACK:
            self._uses.popleft()
        return GpuState(
            use=sum(use for _, use in self._uses) / len(self._uses) if self._uses else None,
            memory=told.memory,
            total=told.total,
            power=told.power,
            energy=self._used(now, told.power),
            seconds=now - self._uses[0][0] if self._uses else 0.0,
        )

    def _used(self, now: float, power: float | None) -> float | None:
        """Joules since the first look: by the device's own counter, else power times time (trapezia)."""
        millijoules = self._device.ask("nvmlDeviceGetTotalEnergyConsumption")
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


def own_gpu(device: torch.device) -> Gpu | None:
    """The GPU that ``device`` is; None where it is none, or nobody can be asked about it."""
    if device.type != "cuda":
        return None
    import torch

    try:
        library = load_library()
    except NoGpus:
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    found = find_device(library, uuid if uuid.startswith("MIG-") else f"GPU-{uuid}")
    return None if found is None else Gpu(found)
