"""How loud, how clipped and how silent every prepared segment is; and that of a whole dataset, as figures and as a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.manifest import SPLITS

QUIETEST = -70.0  # LUFS; the absolute gate of BS.1770-4: what lies below counts as silence
CLIP_RUN = 3  # successive samples
CLIP_LEVEL = 0.999  # of full scale, before any gain of ours
SILENCE = 1e-3  # RMS of a block: -60 dBFS
SILENCE_BLOCK = 0.05  # seconds
BIN_EDGES = np.arange(-70, 2, 2)  # LUFS
PICTURE = "loudness.png"


def measure(tracks: Sequence[np.ndarray], rate: int, gain: float = 1.0) -> dict[str, np.ndarray]:
    """Levels of ``tracks``, each (n,) or (C, n), full scale 1, to which ``gain`` has been applied; arrays by track:

    ``lufs`` float32, integrated loudness by ITU-R BS.1770-4, no less than QUIETEST; ``peak`` float32, dBFS of the largest sample, no less
    than -120; ``clipped`` int64, runs of CLIP_RUN samples or more that were at full scale before the gain; ``silence`` float32, the share
    of 50 ms blocks under -60 dBFS.
    """
    rows = [np.atleast_2d(track) for track in tracks]
    peaks = [float(np.abs(row).max(initial=0.0)) for row in rows]
    return {
        "lufs": np.array([_lufs(row, rate) if top else QUIETEST for row, top in zip(rows, peaks, strict=True)], "f4"),
        "peak": np.array([20 * np.log10(max(top, 1e-6)) for top in peaks], np.float32),
        "clipped": np.array([_clipped_runs(row, CLIP_LEVEL * gain) for row in rows], np.int64),
        "silence": np.array([_silence(row, rate) for row in rows], np.float32),
    }


def _lufs(audio: np.ndarray, rate: int) -> float:
    import pyloudnorm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the logarithm of a segment in which every block is gated
        loudness = pyloudnorm.Meter(rate).integrated_loudness(audio.T)
    return max(float(loudness), QUIETEST)


def _clipped_runs(audio: np.ndarray, level: float) -> int:
    full = np.abs(audio) >= level
    if not full.any():
        return 0
    edges = np.diff(full.astype(np.int8), axis=1, prepend=0, append=0)
    lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    return int((lengths >= CLIP_RUN).sum())


def _silence(audio: np.ndarray, rate: int) -> float:
    block = int(SILENCE_BLOCK * rate)
    count = audio.shape[1] // block
    blocks = audio[:, : count * block].reshape(len(audio), count, block)
    return (
        float((np.sqrt(np.mean(np.square(blocks, dtype=np.float64), axis=(0, 2))) < SILENCE).mean()) if count else 0.0
    )


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
