"""The overview as one screen: a head line, a row for each run that is alive or has just ended, and how many older ones there are."""

from __future__ import annotations

import shutil
import time
from datetime import datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from monitoring.health import duration
from monitoring.overview import Overview, Standing

RECENT = 7 * 86400.0  # seconds for which a run that has ended stays on the screen
SHOWN = 20  # runs that wait, and as many that have ended
COLOURS = {
    "running": "green", "starting": "cyan", "queued": "cyan", "silent": "red", "failed": "red", "killed": "red",
    "stopped": "yellow", "complete": "bright_black", "created": "bright_black",
}  # fmt: skip
COLUMNS = (
    "RUN", "STATE", "STEP/TOTAL", "LEFT", "LOSS", "VALID (best)", "STEPS/S", "MFU", "PEAK GiB", "GPU", "GPU MEM", "SAVED", "TRIES",
    "GPUh", "HEALTH",
)  # fmt: skip
OPTIONAL = {"MFU", "PEAK GiB", "GPU", "GPU MEM"}  # left out where no run has them
LEFT = {"RUN", "STATE", "HEALTH"}


def screen(overview: Overview, *, everything: bool) -> Group:
    """All that is on one screen; ``everything``: without leaving out what ended long ago."""
    shown, left_out = chosen(overview.runs, everything=everything)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    rows = [row(standing) for standing in shown]
    kept = [i for i, name in enumerate(COLUMNS) if name not in OPTIONAL or any(cells[i] for cells in rows)]
    for name in (COLUMNS[i] for i in kept):
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=name != "HEALTH", overflow="fold")
    for cells in rows:
        table.add_row(*(cells[i] for i in kept))
    rest = [f"{count} more {what}: --all" for what, count in left_out.items() if count]
    rest += [f"{name} cannot be read ({why})" for name, why in overview.unreadable.items()]
    if not overview.runs:
        rest.append(f"no runs yet in {overview.root}; start one with: python jobs/launch.py dismix_demo")
    return Group(head(overview), table, *(Text(line, style="bright_black") for line in rest))


def chosen(runs: list[Standing], *, everything: bool) -> tuple[list[Standing], dict[str, int]]:
    """(what is on the screen, how many of what are not): all that runs, the first that wait, and what has ended lately."""
    if everything:
        return runs, {}
    running = [s for s in runs if s.alive and s.state != "queued"]
    queued = [s for s in runs if s.state == "queued"]
    ended = [s for s in runs if not s.alive]
    recent = [s for s in ended if time.time() - s.changed < RECENT][:SHOWN]
    left_out = {"are queued": len(queued[SHOWN:]), "have ended": len(ended) - len(recent)}
    return running + queued[:SHOWN] + recent, left_out


def head(overview: Overview) -> Text:
    """Where this comes from, how old it is, and what all runs have in common."""
    counts = {state: sum(s.state == state for s in overview.runs) for state in COLOURS}
    parts = [", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no runs"]
    if overview.seen is not None:
        parts.append(f"mirror, {duration(overview.seen)} old")
    if overview.slurm is not None:
        parts.append(f"slurm {overview.slurm.age:.0f} s old" if overview.slurm.age < 1e9 else "slurm silent")
    parts.append(f"{sum(s.gpu_hours for s in overview.runs):,.1f} GPU-hours")
    line = Text(" · ".join(parts), style="bold")
    if overview.slurm is not None and overview.slurm.problem:
        line.append(f" · {overview.slurm.problem}", style="red")
    if overview.seen is None:
        free = shutil.disk_usage(overview.root)
        low = free.free < max(10e9, 0.03 * free.total)
        line.append(f" · {free.free / 1e9:,.0f} GB free{': the disk is filling' if low else ''}", "red" if low else "")
    return line


def row(s: Standing) -> list[Text | str]:
    """One run in the order of COLUMNS; what is not known is empty."""
    width = f" {s.processes}×" if s.processes and s.state in ("running", "silent") else ""
    return [
        Text(s.name),
        Text(s.state + width, style=COLOURS[s.state]),
        f"{_count(s.step)}/{_count(s.total)}" if s.step is not None else f"-/{_count(s.total)}" if s.total else "",
        duration(s.left) if s.left is not None else "",
        _number(s.loss) + _change(s.loss_change),
        f"{s.best_validation:.4g} (@{_count(s.best_validation_step)})" if s.best_validation is not None else "",
        f"{s.rate:.3g}{_change(s.rate_change)}" if s.rate else "",
        _share(s.mfu),
        f"{s.peak_memory:.3g}" if s.peak_memory else "",
        _share(s.gpu_use),
        _share(s.gpu_memory),
        duration(s.checkpoint_age) if s.checkpoint_age is not None and s.alive else "",
        str(s.attempts),
        f"{s.gpu_hours:.1f}",
        _words(s),
    ]


def _words(s: Standing) -> Text:
    if s.waits_for:
        return Text(s.waits_for, style="cyan")
    if s.health:
        return Text("; ".join(s.health), style="red" if s.state != "stopped" else "yellow")
    if s.state == "complete":
        return Text(f"{datetime.fromtimestamp(s.changed):%d %b %H:%M}", style="bright_black")
    return Text("ok" if s.state == "running" else "")


def _count(number: int | None) -> str:
    """A step as 9,500 or 82k."""
    if number is None:
        return "?"
    return f"{number:,}" if number < 10_000 else f"{number / 1000:.0f}k" if number < 1e6 else f"{number / 1e6:.2f}M"


def _number(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _change(relative: float | None) -> str:
    return "" if relative is None else f" {relative:+.0%}"
