"""What every benchmark hands over, so that ``make bench`` can show all of them in one table.

A benchmark is a module of this folder, run as ``python -m benchmarks.NAME``. It prints its own table, with all that it measured, and
ends with one call of ``hand_over``: one ``Row`` for each comparison (at most four or five). Its defaults are those of ``make bench``
and take three minutes at most on two cores; ``benchmarks/__main__.py`` finds it by that call.

    hand_over("trainer", [
        Row(
            "a step of the training loop",                          # what is measured
            amount([402e-6, 398e-6], "s"),                          # ours, in words
            f"bare PyTorch loop: {amount([41e-6, 40e-6], 's')}",    # what one would pick instead, and its figure
            [361e-6, 358e-6],                                       # one value for each turn: their spread is shown
            unit="s",                                               # "x": ratio; "s"; "%": share (.02: 2 %); "B/s"; "FLOP/s"; ...
            at_most=300e-6,                                         # what is asked of the median, where something is
        ),
    ])

A value compares what one turn measured, the contenders taking turns in one run, so that whatever else the machine does
happens to all of them: ``ratios(ours, theirs)``. A figure of one program alone says little of another machine and belongs in the text.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

FOLDER = "BENCHMARK_ROWS"  # environment variable: where ``make bench`` wants the rows; where it is not set nothing is written
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))
PREFIXED = ("s", "B", "B/s", "FLOP/s")  # units that take them (seconds: the small ones only)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        what: is measured, in a few words.
        ours, theirs: what both are and their own figures, for people ("bare PyTorch loop: 41 us").
        values: one for each turn, in ``unit``.
        unit: "x" for ratios, "%" for shares between 0 and 1, "s", "B", "B/s", "FLOP/s" (shown with a prefix), or any other word.
        at_most, at_least: what is asked of the median; neither: it is only shown.
    """

    what: str
    ours: str
    theirs: str
    values: Sequence[float]
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"the benchmark row '{self.what}' has no values; hand over one for each turn")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def shown(self) -> str:
        """``0.98 x (0.97 .. 1.01)``."""
        return amount(self.values, self.unit)

    @property
    def asked(self) -> str:
        """``<= 300 us``; empty where nothing is asked."""
        bounds = (("<=", self.at_most), (">=", self.at_least))
        return ", ".join(f"{sign} {amount([bound], self.unit)}" for sign, bound in bounds if bound is not None)

    @property
    def holds(self) -> bool | None:
        """Whether the median is what is asked; None where nothing is."""
        if self.at_most is None and self.at_least is None:
            return None
        most = math.inf if self.at_most is None else self.at_most
        least = -math.inf if self.at_least is None else self.at_least
        return least <= self.median <= most


@dataclass(frozen=True)
class Grid:
    """A table that is no comparison of two, for the page of results and, by ``shown``, for the terminal."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def shown(self) -> Table:
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Turn by turn ours over theirs."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def amount(values: Sequence[float], unit: str) -> str:
    """Median and, of several, spread: ``402 us (398 .. 410)``; three digits, with the prefix that the unit takes."""
    factor, prefix = _scale(statistics.median(values), unit)
    low, middle, high = (_digits(pick(values) / factor) for pick in (min, statistics.median, max))
    return f"{middle} {prefix}{unit}" + (f" ({low} .. {high})" if len(values) > 1 else "")


def _scale(value: float, unit: str) -> tuple[float, str]:
    """What a figure is divided by, and the prefix that says so."""
    if unit == "%":
        return 0.01, ""
    known = [(f, p) for f, p in PREFIXES if unit in PREFIXED and (f <= 1 or unit != "s")]
    return next(((f, p) for f, p in known if abs(value) >= f), (1.0, ""))


def _digits(value: float) -> str:
    """Three digits that count, and none behind the point from 100 on."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def hand_over(benchmark: str, rows: Sequence[Row], grids: Sequence[Grid] = ()) -> None:
    """Leave ``rows`` (and ``grids``) where ``make bench`` looks for them: ``$BENCHMARK_ROWS/<benchmark>.json``."""
    if folder := os.environ.get(FOLDER):
        tree = {"rows": [asdict(row) for row in rows], "grids": [asdict(grid) for grid in grids]}
        (Path(folder) / f"{benchmark}.json").write_text(json.dumps(tree))


def handed_over(folder: Path) -> tuple[list[Row], list[Grid]]:
    """All that was left in ``folder``."""
    trees = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows, grids = ([one for tree in trees for one in tree[kind]] for kind in ("rows", "grids"))
    return [Row(**row) for row in rows], [Grid(**grid) for grid in grids]
