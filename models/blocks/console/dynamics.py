"""Compressor and de-esser: feed-forward, the level read as the peak of every millisecond, the reduction smoothed in decibels.

Giannoulis, Massberg and Reiss, "Digital Dynamic Range Compressor Design" (JAES 60, 2012): soft knee Eq. (4), smoothing of the gain with
a branch for attack and one for release Eq. (16). The gain is that of the very samples it is applied to: nothing is delayed.

Shapes: n samples, T milliseconds; leading dimensions (...) are samples of a batch and tracks; knobs are (..., 1) or (..., T).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.blocks.precision import kept_for_all

FLOOR = -120.0  # dB; what a level is at least
STRETCH = 16  # milliseconds taken together where attack and release are told apart


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
    return _recursion(keep, (1 - keep) * wanted)


@torch.no_grad()
def _rises(wanted: Tensor, rise: Tensor, fall: Tensor) -> Tensor:
    """(..., T): where x_t > y_{t-1}. Exact, and always the same operations in the same shapes, so the host waits for nothing.

    Every step's map of y_{t-1} to y_t grows with y_{t-1}, so a stretch's steps rise or fall by where y stood before the stretch: step t
    rises below an edge, x_t taken back through the inverses of the steps before it, for all stretches at once. Between two edges the whole
    stretch is one straight line, and y goes from stretch to stretch by those.
    """
    x, rise, fall = (_stretches(v) for v in torch.broadcast_tensors(wanted, rise, fall))  # (..., M, STRETCH)
    edges = x.clone()
    for i in reversed(range(STRETCH - 1)):
        here, up, down, later = x[..., i : i + 1], rise[..., i : i + 1], fall[..., i : i + 1], edges[..., i + 1 :]
        edges[..., i + 1 :] = here + (later - here) / torch.where(later < here, up, down)
    return (_before(x, rise, fall, edges)[..., None] < edges).flatten(-2)[..., : wanted.shape[-1]]


def _before(x: Tensor, rise: Tensor, fall: Tensor, edges: Tensor) -> Tensor:
    """(..., M): where y stood before each stretch."""
    turns = edges.sort(-1).values  # where one line ends and the next begins
    begins = F.pad(turns, (1, 0), value=-torch.inf)[..., None]  # of the lines, (..., M, STRETCH + 1, 1)
    x, rise, fall, edges = (
        v.flip(-1)[..., None, :] for v in (x, rise, fall, edges)
    )  # from a stretch's end to its beginning
    kept = F.pad(
        torch.where(begins < edges, rise, fall).cumprod(-1), (1, 0), value=1.0
    )  # of y, from before a step to the end
    slopes, offsets = kept[..., -1], (-kept.diff(dim=-1) @ x.mT)[..., 0]
    y, found = turns.new_zeros(*turns.shape[:-2], 1), []
    for turn, slope, offset in zip(*(v.movedim(-2, 0).contiguous() for v in (turns, slopes, offsets)), strict=True):
        found.append(y)
        line = torch.searchsorted(turn, y, right=True)
        y = torch.addcmul(offset.gather(-1, line), slope.gather(-1, line), y)
    return torch.cat(found, dim=-1)


def _stretches(values: Tensor) -> Tensor:
    """(..., T) -> (..., M, STRETCH), filled up by steps that change nothing before them."""
    return F.pad(values, (0, -values.shape[-1] % STRETCH), mode="constant", value=1.0).unflatten(-1, (-1, STRETCH))


def _recursion(keep: Tensor, added: Tensor) -> Tensor:
    """y_t = keep_t y_{t-1} + added_t, y_{-1} = 0, along the last axis, by doubling (Hillis and Steele 1986)."""
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
