"""How loud, how clipped and how silent every prepared segment is; and that of a whole dataset, as figures and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from data_prep.audio import FULL_SCALE, peak
from data_prep.loudness import QUIETEST, integrated, k_weighted, step_powers
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
        rate: in Hz, a multiple of 100.
        mixed: a last row for the sum of all tracks, which must fit into 16 bits.
    """
    rows = [np.atleast_2d(track) for track in tracks]
    weighted = [_weighted(row, rate) for row in rows]
    if mixed:
        rows.append(reduce(np.add, rows))
        weighted.append(_sum([wave for wave in weighted if wave is not None]))  # filtering is linear
    peaks = [peak(row) / FULL_SCALE for row in rows]
    return {
        "lufs": np.array([_lufs(wave, rate) for wave in weighted], "f4"),
        "peak": np.array([20 * np.log10(max(top, 1e-6)) for top in peaks], np.float32),
        "clipped": np.array([_clipped_runs(row, CLIP_LEVEL * gain * FULL_SCALE) for row in rows], np.int64),
        "silence": np.array([_silence(row, rate) for row in rows], np.float32),
    }


def _weighted(row: np.ndarray, rate: int) -> list[np.ndarray] | None:
    """The K-weighted channels; None where all is zero."""
    return [k_weighted(channel, rate) for channel in row] if row.any() else None


def _sum(tracks: Sequence[list[np.ndarray]]) -> list[np.ndarray] | None:
    return [reduce(np.add, channels) for channels in zip(*tracks, strict=True)] or None


def _lufs(weighted: list[np.ndarray] | None, rate: int) -> float:
    return (
        QUIETEST if weighted is None else round(integrated(sum(step_powers(channel, rate) for channel in weighted)), 2)
    )


def _clipped_runs(row: np.ndarray, level: float) -> int:
    if peak(row) < level:
        return 0
    full = np.abs(row.astype(np.int32)) >= level
    edges = np.diff(full.astype(np.int8), axis=1, prepend=0, append=0)
    lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    return int((lengths >= CLIP_RUN).sum())


def _silence(row: np.ndarray, rate: int) -> float:
    block = int(SILENCE_BLOCK * rate)
    count = row.shape[1] // block
    if not count:
        return 0.0
    blocks = row[:, : count * block].astype(np.float32).reshape(len(row), count, block)
    powers = np.einsum("cbn,cbn->b", blocks, blocks) / (len(row) * block)
    return float((powers < (SILENCE * FULL_SCALE) ** 2).mean())


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
