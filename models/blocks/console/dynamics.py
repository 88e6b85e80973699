"""Compressor and de-esser: feed-forward, the level read as the peak of every millisecond, the reduction smoothed in decibels.

Giannoulis, Massberg and Reiss, "Digital Dynamic Range Compressor Design" (JAES 60, 2012): soft knee Eq. (4), smoothing of the gain with
a branch for attack and one for release Eq. (16). The gain is that of the very samples it is applied to: nothing is delayed.

Shapes: n samples, T milliseconds; leading dimensions (...) are samples of a batch and tracks; knobs are (..., 1) or (..., T).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.blocks.precision import kept_for_all

FLOOR = -120.0  # dB; what a level is at least
ONE_BY_ONE = 32  # maps that are gone through in turn where attack and release are told apart: fewer take more sorting


def control_hop(sample_rate: int) -> int:
    """Samples in a millisecond."""
    return round(sample_rate / 1000)


def peak_levels(wave: Tensor, hop: int) -> Tensor:
    """(..., n) -> (..., T = ceil(n / hop)) peak of every ``hop`` samples in dB of full scale."""
    padded = F.pad(wave.abs(), (0, -wave.shape[-1] % hop))
    return 20 * padded.unflatten(-1, (-1, hop)).amax(-1).clamp(min=10 ** (FLOOR / 20)).log10()


def reduction_wanted(level: Tensor, threshold: Tensor, ratio: Tensor, knee: Tensor) -> Tensor:
    """Decibels by which levels (..., T) are to be reduced, Eq. (4); a knee of 0 dB is hard."""
    over, half = level - threshold, knee.clamp(min=1e-3) / 2
    bent = (over + half).clamp(min=0).square() / (4 * half)
    return (1 - 1 / ratio) * torch.where(over > half, over, torch.where(over < -half, torch.zeros_like(bent), bent))


def smoothed(wanted: Tensor, attack: Tensor, release: Tensor, step_ms: float) -> Tensor:
    """(..., T) -> (..., T): y_t = k y_{t-1} + (1 - k) x_t, k by ``attack`` (ms) where x_t > y_{t-1}, else by ``release``; Eq. (16).

    Which of the two holds at t depends on y; once that is known the recursion is linear and solved in log T steps.
    """
    rise, fall = torch.exp(-step_ms / attack), torch.exp(-step_ms / release)
    keep = torch.where(_rises(wanted, rise, fall), rise, fall)
    y: Tensor = _Recursion.apply(keep, (1 - keep) * wanted)
    return y


@torch.no_grad()
def _rises(wanted: Tensor, rise: Tensor, fall: Tensor) -> Tensor:
    """(..., T): where x_t > y_{t-1}. Exact, and always the same operations in the same shapes, so the host waits for nothing.

    A step maps y_{t-1} to y_t by two rising lines that meet at x_t, and two maps after each other are a map that turns where either does.
    So neighbours are joined, all pairs at once and again (a scan: Blelloch, "Prefix sums and their applications", 1990), until few maps
    are left. Those are gone through one by one; back down, y before a pair gives y within it.
    """
    steps = wanted.shape[-1]
    levels = max(0, math.ceil(math.log2(max(1, steps) / ONE_BY_ONE)))
    x, rise, fall = (  # filled up by steps that change nothing
        F.pad(v, (0, -steps % 2**levels), value=1.0) for v in torch.broadcast_tensors(wanted, rise, fall)
    )
    slopes = torch.stack([rise, fall], dim=-1)
    maps, firsts = Maps(x[..., None], slopes, (1 - slopes) * x[..., None]), []
    for _ in range(levels):
        first, second = (Maps(*(v[..., half::2, :].contiguous() for v in maps)) for half in (0, 1))
        firsts.append(first)
        maps = first.then(second)
    before = maps.in_turn()
    for first in reversed(firsts):
        before = torch.stack([before, first.of(before[..., None])[..., 0]], dim=-1).flatten(-2)
    return (before < x)[..., :steps]


class Maps(NamedTuple):
    """M maps of numbers to numbers, rising and made of straight lines: L turns (..., M, L) in order, slopes and offsets (..., M, L + 1)."""

    turns: Tensor
    slopes: Tensor
    offsets: Tensor

    def of(self, y: Tensor) -> Tensor:
        """(..., M, k) -> (..., M, k)."""
        line = torch.searchsorted(self.turns, y, right=True)
        return torch.addcmul(self.offsets.gather(-1, line), self.slopes.gather(-1, line), y)

    def then(self, second: Maps) -> Maps:
        """Each of these, and the one of ``second`` in its place after it."""
        line = torch.searchsorted(self.of(self.turns), second.turns, right=True)
        taken_back = (second.turns - self.offsets.gather(-1, line)) / self.slopes.gather(-1, line)
        # A line may have become level, for want of digits: what lies on it turns somewhere along it. Infinities would make no sums.
        ends = F.pad(F.pad(self.turns, (0, 1), value=math.inf), (1, 0), value=-math.inf)
        taken_back = taken_back.fmax(ends.gather(-1, line)).fmin(ends.gather(-1, line + 1)).nan_to_num()
        turns, order = torch.cat([self.turns, taken_back], dim=-1).sort(-1)
        # How many turns of the first map lie below is the number of its line.
        one = F.pad((order < self.turns.shape[-1]).cumsum(-1), (1, 0))
        two = torch.arange(one.shape[-1], device=one.device) - one
        slopes = second.slopes.gather(-1, two)
        offsets = torch.addcmul(second.offsets.gather(-1, two), slopes, self.offsets.gather(-1, one))
        return Maps(turns, self.slopes.gather(-1, one) * slopes, offsets)

    def in_turn(self) -> Tensor:
        """(..., M): what stood before each map, 0 before the first."""
        y, found = self.turns.new_zeros(*self.turns.shape[:-2], 1), []
        for one in zip(*(v.movedim(-2, 0).contiguous() for v in self), strict=True):
            found.append(y)
            y = Maps(*one).of(y)
        return torch.cat(found, dim=-1)


class _Recursion(torch.autograd.Function):
    """y_t = keep_t y_{t-1} + added_t, y_{-1} = 0, along the last axis. Its gradient is such a recursion from the end to the beginning."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, added: Tensor) -> Tensor:
        y = _doubled(keep, added)
        ctx.save_for_backward(keep, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        keep, y = ctx.saved_tensors
        for_added = _doubled(F.pad(keep[..., 1:], (0, 1)).flip(-1), gradient.flip(-1)).flip(-1)
        return for_added * F.pad(y[..., :-1], (1, 0)), for_added


def _doubled(keep: Tensor, added: Tensor) -> Tensor:
    """That recursion by doubling (Hillis and Steele 1986)."""
    step = 1
    while step < added.shape[-1]:
        added = torch.cat([added[..., :step], added[..., step:] + keep[..., step:] * added[..., :-step]], dim=-1)
        keep = torch.cat([keep[..., :step], keep[..., step:] * keep[..., :-step]], dim=-1)
        step *= 2
    return added


def per_sample(control: Tensor, hop: int, length: int) -> Tensor:
    """(..., T) -> (..., n): straight lines between the middles of the milliseconds."""
    ends = torch.cat([control[..., :1], control, control[..., -1:]], dim=-1).unfold(-1, 2, 1)
    early = (hop + 1) // 2  # from the first line's beginning to the first sample
    return (ends @ _line(hop, control.dtype, control.device)).flatten(-2)[..., early : early + length]


@kept_for_all
def _line(hop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, hop): shares of both ends; the middle of an even number of samples lies between two of them."""
    along = ((torch.arange(hop, dtype=torch.float64) + (0.5 if hop % 2 == 0 else 0)) / hop).to(dtype)
    return torch.stack([1 - along, along]).to(device)


def compressor_reduction(level: Tensor, knobs: dict[str, Tensor], step_ms: float) -> Tensor:
    """Levels (..., T) -> decibels of reduction (..., T); knobs ``threshold ratio knee attack release``."""
    wanted = reduction_wanted(level, knobs["threshold"], knobs["ratio"], knobs["knee"])
    return smoothed(wanted, knobs["attack"], knobs["release"], step_ms)


DE_ESSER_ATTACK, DE_ESSER_RELEASE, DE_ESSER_KNEE = 1.0, 40.0, 6.0  # ms, ms, dB


def de_esser_reduction(level: Tensor, knobs: dict[str, Tensor], step_ms: float) -> Tensor:
    """Levels (..., T) of the sibilant band -> decibels by which that band is reduced."""
    knee, attack, release = (level.new_full((), x) for x in (DE_ESSER_KNEE, DE_ESSER_ATTACK, DE_ESSER_RELEASE))
    wanted = reduction_wanted(level, knobs["sibilance_threshold"], knobs["sibilance_ratio"], knee)
    return smoothed(wanted, attack, release, step_ms)
