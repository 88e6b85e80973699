"""Metrics as pictures for a page that must open anywhere: one SVG a metric, training, validation and another run in one frame."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.journal import Point, read_journals
from pipeline.runs import RunFolder

POINTS = 1200  # a curve, after thinning
COLOURS = {"train": "#4477aa", "valid": "#cc6677", "time": "#228833"}
DECADES = 100.0  # between the largest and the smallest value
APART = 5.0  # between the middles of two curves
OTHER = 0.45  # opacity of the run that is compared with

Series = list[tuple[int, float]]  # (step, value)


@dataclass
class Frame:
    """One picture: ``curves`` by (part, whether of the other run), ``restarts``: steps at which an attempt began."""

    name: str
    curves: dict[tuple[str, bool], Series] = field(default_factory=dict)
    restarts: Sequence[int] = ()


def frames(run: RunFolder, other: RunFolder | None, restarts: Sequence[int]) -> list[Frame]:
    """All metrics, ``train/x`` and ``valid/x`` in one frame; losses first, what the clock says last."""
    found: dict[str, Frame] = {}
    for source, foreign in ((run, False), (other, True)):
        for point in read_journals(source.metrics) if source else ():
            _add(found, point, foreign)
    for frame in found.values():
        frame.restarts = restarts
    return sorted(found.values(), key=_rank)


def _add(found: dict[str, Frame], point: Point, foreign: bool) -> None:
    for path, value in point.metrics.items():
        part, _, name = path.partition("/")
        key = name if part in ("train", "valid") else path
        found.setdefault(key, Frame(key)).curves.setdefault((part, foreign), []).append((point.step, value))


def _rank(frame: Frame) -> tuple[int, str]:
    parts = {part for part, _ in frame.curves}
    return (0 if frame.name == "loss" else 1 if "valid" in parts else 3 if "time" in parts else 2), frame.name


def thin(series: Series, count: int = POINTS) -> Series:
    """At most about ``count`` points that keep every peak: of each bucket the lowest and the highest; values that are not finite go."""
    finite = [(step, value) for step, value in series if math.isfinite(value)]
    if len(finite) <= count:
        return finite
    size = math.ceil(2 * len(finite) / count)
    kept: set[tuple[int, float]] = {finite[-1]}
    for begin in range(0, len(finite), size):
        bucket = finite[begin : begin + size]
        kept |= {min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}
    return sorted(kept)


def draw(frame: Frame, width: float, height: float) -> bytes:
    """The frame as SVG, its size in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8, "svg.hashsalt": "slurmphony"}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        for (part, foreign), series in sorted(frame.curves.items(), key=lambda item: (not item[0][1], item[0][0])):
            points = thin(series)
            style: dict[str, Any] = {"alpha": OTHER, "linestyle": "--"} if foreign else {}
            marker = "o" if len(points) < 20 else ""
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()), color=COLOURS.get(part, "#aa3377"), linewidth=1.1,
                marker=marker, markersize=2.5, label=f"{part}{' (other)' if foreign else ''}", **style,
            )  # fmt: skip
        for step in frame.restarts:
            axes.axvline(step, color="#999999", linewidth=0.6, linestyle=":")
        if _spans_decades(frame.curves.values()):
            axes.set_yscale("log")
        axes.set_title(frame.name.replace("_", " "), fontsize=9, parse_math=False)
        axes.set_xlabel("step")
        axes.grid(color="#e6e6e6", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if len(frame.curves) > 1:
            axes.legend(frameon=False, fontsize=7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _spans_decades(curves: Iterable[Series]) -> bool:
    """Whether values are positive and so far apart that only a logarithmic axis shows the low ones, or how a low curve moves."""
    finite = [values for series in curves if (values := [v for _, v in series if math.isfinite(v)])]
    if not finite or min(map(min, finite)) <= 0:
        return False
    middles = [statistics.median(values) for values in finite]
    return max(map(max, finite)) > DECADES * min(map(min, finite)) or max(middles) > APART * min(middles)
