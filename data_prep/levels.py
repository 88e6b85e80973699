"""How loud, how clipped and how silent every prepared segment is; and that of a whole dataset, as figures and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from data_prep.audio import FULL_SCALE, peak
from data_prep.loudness import integrated, step_powers
from pipeline.manifest import SPLITS

CLIP_RUN = 3  # successive samples
CLIP_LEVEL = 0.999  # of full scale, before any gain of ours
SILENCE = 1e-3  # RMS of a block: -60 dBFS
SILENCE_BLOCK = 0.05  # seconds
BIN_EDGES = np.arange(-70, 2, 2)  # LUFS
PICTURE = "loudness.png"


def measure(tracks: Sequence[np.ndarray], rate: int, gain: float = 1.0, mixed: bool = False) -> dict[str, np.ndarray]:
    """Levels of ``tracks``, each int16 (n,) or (C, n), full scale 32768, to which ``gain`` has been applied; arrays by track:

    ``lufs`` float32, integrated loudness by ITU-R BS.1770-4 to 0.01 LU, no less than QUIETEST; ``peak`` float32, dBFS of the largest
    sample, no less than -120; ``clipped`` int64, runs of CLIP_RUN samples or more that were at full scale before the gain; ``silence``
    float32, the share of 50 ms blocks under -60 dBFS.

    Args:
        rate: in Hz, a multiple of 10.
        mixed: a last row for the sum of all tracks, which must fit into 16 bits.
    """
    rows = [np.atleast_2d(track) for track in tracks]
    lufs = _loudness(rows, rate, mixed)
    if mixed:
        rows.append(reduce(np.add, rows))
    seen = [_seen(row, int(SILENCE_BLOCK * rate)) for row in rows]
    return {
        "lufs": np.array(lufs, "f4"),
        "peak": np.array([20 * np.log10(max(top / FULL_SCALE, 1e-6)) for top, _ in seen], np.float32),
        "clipped": np.array(
            [_clipped_runs(row, CLIP_LEVEL * gain * FULL_SCALE, top) for row, (top, _) in zip(rows, seen, strict=True)],
            np.int64,
        ),
        "silence": np.array([silence for _, silence in seen], np.float32),
    }


def _loudness(rows: Sequence[np.ndarray], rate: int, mixed: bool) -> list[float]:
    """LUFS of each of ``rows`` and, where ``mixed``, of their sum."""
    if mixed:
        powers = np.sum([step_powers(channel, rate) for channel in zip(*rows, strict=True)], axis=0)
    else:
        powers = [sum(step_powers([channel], rate)[0] for channel in row) for row in rows]
    return [round(integrated(power), 2) for power in powers]


def _seen(row: np.ndarray, block: int) -> tuple[float, float]:
    """The largest absolute sample of (C, n), and the share of blocks of ``block`` samples under SILENCE."""
    count = row.shape[1] // block
    blocks = row[:, : count * block].reshape(len(row), count, block)
    tops = np.maximum(
        blocks.max(axis=2, initial=0).astype(np.int32), -blocks.min(axis=2, initial=0).astype(np.int32)
    ).max(axis=0)
    limit = SILENCE * FULL_SCALE
    silent = tops < limit  # then the RMS is, too
    doubtful = np.flatnonzero(~silent & (tops < limit * np.sqrt(len(row) * block)))  # elsewhere one sample is enough
    silent[doubtful] = np.mean(np.square(blocks[:, doubtful].astype(np.float64)), axis=(0, 2)) < limit**2
    top = max(peak(row[:, count * block :]), float(tops.max(initial=0)))
    return top, float(silent.mean()) if count else 0.0


def _clipped_runs(row: np.ndarray, level: float, top: float) -> int:
    if top < level:
        return 0
    full = np.abs(row.astype(np.int32)) >= level
    edges = np.diff(full.astype(np.int8), axis=1, prepend=0, append=0)
    lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    return int((lengths >= CLIP_RUN).sum())


def summarise(samples: Sequence[Mapping[str, Any]], tracks: int) -> dict[str, Any]:
    """JSON that adds up over shards, from samples' fields ``lufs``, ``clipped``, ``silence`` (by track) and ``pad``."""
    histogram = np.zeros((tracks, len(BIN_EDGES) - 1), np.int64)
    clipped, silent = np.zeros(tracks, np.int64), np.zeros(tracks, np.int64)
    for fields in samples:
        for row, lufs in zip(histogram, fields["lufs"], strict=True):
            row += np.histogram(np.clip(lufs, BIN_EDGES[0], BIN_EDGES[-1]), BIN_EDGES)[0]
        clipped += fields["clipped"] > 0
        silent += fields["silence"] == 1
    return {
        "samples": len(samples),
        "loudness": histogram.tolist(),
        "clipped": clipped.tolist(),
        "silent": silent.tolist(),
        "padded": sum(bool(np.any(fields["pad"])) for fields in samples),
    }


def table(summaries: Mapping[str, Sequence[dict[str, Any]]], tracks: Sequence[str], seconds: float) -> list[str]:
    """Markdown: hours, loudness, clipping and silence by split and track, and the line that shows the picture."""
    lines = [
        "| split | track | samples | hours | median LUFS | with clipping | wholly silent |",
        "|---|---|---|---|---|---|---|",
    ]
    for split in SPLITS:
        if not any(s["samples"] for s in summaries[split]):
            continue
        count = sum(s["samples"] for s in summaries[split])
        histogram, clipped, silent = (
            np.sum([s[what] for s in summaries[split]], axis=0) for what in ("loudness", "clipped", "silent")
        )
        for i, track in enumerate(tracks):
            hours = f"{count * seconds / 3600:.2f}"
            lines.append(
                f"| {split} | {track} | {count} | {hours} | {_median(histogram[i])} | {clipped[i]} | {silent[i]} |"
            )
    padded = sum(s["padded"] for split in SPLITS for s in summaries[split])
    return [
        *lines,
        "",
        f"{padded} samples hold padding, which `pad` marks.",
        "",
        f"![Loudness of the samples]({PICTURE})",
    ]


def _median(histogram: np.ndarray) -> str:
    """To the middle of its bin; the lowest bin is silence."""
    heard = histogram[1:]
    if not heard.sum():
        return "silent"
    place = int(np.searchsorted(np.cumsum(heard), heard.sum() / 2))
    return str(int(BIN_EDGES[1 + place] + 1))


def picture(summaries: Mapping[str, Sequence[dict[str, Any]]], tracks: Sequence[str]) -> bytes:
    """A PNG: one histogram of integrated loudness a track, the splits on top of each other; the same bytes for the same figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * len(tracks) + 1.2, 2.6), layout="constrained")
    middles = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
    for axes, i in zip(np.atleast_1d(figure.subplots(1, len(tracks), sharey=True)), range(len(tracks)), strict=True):
        bottom = np.zeros(len(middles))
        for split in SPLITS:
            if summaries[split]:
                counts = np.sum([s["loudness"][i] for s in summaries[split]], axis=0)
                axes.bar(middles, counts, width=2, bottom=bottom, label=split)
                bottom = bottom + counts
        axes.set_title(tracks[i], fontsize=9)
        axes.set_xlabel("LUFS")
    figure.axes[0].set_ylabel("samples")
    figure.axes[-1].legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
