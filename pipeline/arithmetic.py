"""How much a step computes, and what share of the device's peak that is: model FLOPs utilisation (MFU; PaLM, arXiv 2204.02311, appendix B).

Counted is what matrix products, convolutions and attention do in an attempt's first step, forward and backward, at two operations a
multiply-add (torch's own formulas, ``torch.utils.flop_counter``); recurrences in one kernel (cuDNN's LSTM), transforms and everything
element by element are not, and neither is what activation checkpointing computes again. Counting looks at each operation as it passes and
changes none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.recompute import under_way

# Dense peaks in FLOP/s as NVIDIA's data sheets state them (without sparsity): by a word of the device's name, in this order, for
# bfloat16 and TF32 on tensor cores, and for float32 in full.
STATED = {
    "H200 NVL": {"bf16": 835e12, "tf32": 417e12, "32": 60e12},
    "H200": {"bf16": 989e12, "tf32": 494e12, "32": 67e12},
    "H100 PCIe": {"bf16": 756e12, "tf32": 378e12, "32": 51e12},
    "H100 NVL": {"bf16": 835e12, "tf32": 417e12, "32": 60e12},
    "H100": {"bf16": 989e12, "tf32": 494e12, "32": 67e12},
    "A100": {"bf16": 312e12, "tf32": 156e12, "32": 19.5e12},
}
WIDTH = {"cuda": 8192, "cpu": 768}  # of the square matrices where a peak is measured
PRODUCTS = 3  # that are timed, the fastest counts


@dataclass(frozen=True)
class Arithmetic:
    """``flops`` of one process in one step; ``peak`` of its device in FLOP/s, and where that figure is ``peak_from``."""

    flops: int
    peak: float
    peak_from: str

    def rates(self, steps_per_second: float) -> dict[str, float]:
        """What is journalled: operations a second of one process (TFLOP/s), and their share of the peak."""
        per_second = self.flops * steps_per_second
        return {"time/tflops": per_second / 1e12, "time/mfu": per_second / self.peak}

    def facts(self) -> dict[str, Any]:
        return {"flops": self.flops, "peak_flops": round(self.peak), "peak_from": self.peak_from}


# Beside views: what asks for memory, or only names tensors anew.
LAUNCHES_NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh",
    "_unsafe_view", "_reshape_alias",
}  # fmt: skip


class Count(TorchDispatchMode):
    """Within the block, ``flops`` adds up what is computed, backward passes included, and ``operations`` how often something is: on a GPU
    each of them launches a kernel or a few."""

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # late: it imports much

        self._formulas = flop_registry
        self.flops = self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = getattr(function, "overloadpacket", None)  # what torch.compile makes has none
        if packet is not None and not function.is_view and packet.__name__ not in LAUNCHES_NOTHING:
            self.operations += 1
        formula = self._formulas.get(packet)
        if formula is not None and not under_way():
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


class FirstStep:
    """Counts an attempt's first step. ``found`` afterwards; None where it computes nothing that is counted."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self._device, self._precision = device, precision
        self.found: Arithmetic | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        with Count() as count:
            yield
        if count.flops:
            self.found = Arithmetic(count.flops, *peak_of(self._device, self._precision))


def peak_of(device: torch.device, precision: str) -> tuple[float, str]:
    """(FLOP/s, where the figure is from) of one device in a run's precision: stated where the device is known, else measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for word, peaks in STATED.items():
            if all(part in name for part in word.split()):
                return peaks[precision], f"stated for {name}"
    return _measured_peak(device, precision)


def _measured_peak(device: torch.device, precision: str) -> tuple[float, str]:
    """The fastest of a few products of large matrices, with as many threads as this process has."""
    width, kind = WIDTH[device.type], torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(width, width, dtype=kind, device=device)
    fastest = float("inf")
    for _ in range(1 + PRODUCTS):  # the first one warms up, and is never the fastest
        _synchronise(device)
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        _synchronise(device)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * width**3 / fastest, f"measured: {width}x{width} products in {str(kind).removeprefix('torch.')}"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
