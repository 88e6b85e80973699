"""Where a recording is cut into segments of one length: spread evenly, without padding wherever the recording is long enough."""

from __future__ import annotations

import numpy as np


def segment_starts(samples: int, length: int, most: int | None = None) -> list[int]:
    """First samples of the segments of a recording: ``samples / length`` of them, rounded, at least one, at most ``most``.

    They reach from one end to the other, with equal gaps or overlaps of at most half a segment (one alone lies in the middle); so the
    tail of a recording is neither lost nor padded. A recording shorter than ``length`` has one segment, from 0.
    """
    count = max(1, int(samples / length + 0.5))
    count = min(count, most or count)
    room = max(0, samples - length)
    if count == 1:
        return [room // 2]
    return [room * i // (count - 1) for i in range(count)]


def segment(audio: np.ndarray, start: int, length: int) -> tuple[np.ndarray, int]:
    """``audio[..., start : start + length]`` and how many zeros had to be appended to it (0 unless the recording is shorter)."""
    cut = audio[..., start : start + length]
    pad = length - cut.shape[-1]
    return (np.pad(cut, [(0, 0)] * (cut.ndim - 1) + [(0, pad)]) if pad else cut), pad
