"""The base of CQTML's datasets: segments of music at 22,050 Hz with their constant-Q transform.

    cqt.npy     float32 (2, 84, L)   L = 1 + segment // 64 frames (``features.CQT``): natural logarithm of the magnitude above the
                                     floor, phase in radians; of the very samples of ``audio``
    audio.npy   int16 (segment,)     mono, full scale 32768; gain 1 unless the recording would clip

and the levels and the padding of ``wave_stage``. The manifest's ``info`` has the CQT's settings and, of the training split, ``mean`` and
``std`` of the log-magnitude for each of the 84 bins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data_prep import levels
from data_prep.audio import FULL_SCALE, fitting_gain, pcm16, peak
from data_prep.segments import segment, segment_starts
from data_prep.stage import BadInput, Fields, Samples
from data_prep.wave_stage import SHARED_CODE, WaveStage, with_levels

SILENT = 1e-3  # RMS; -60 dBFS
CQT_CODE = (
    *SHARED_CODE,
    "data_prep.cqt_stage:CqtStage",
    "models.features:log_cqt",
    "models.features:CQT",
)


@dataclass(frozen=True)
class CqtStage(WaveStage):
    tracks: ClassVar[tuple[str, ...]] = ("audio",)

    def segments(self, audio: np.ndarray) -> Iterator[tuple[int, Fields | None]]:
        """The segments of (n,) float32 at ``sample_rate``: where each begins, and its fields, None where it is silent.

        Raises BadInput where a CQT cannot be computed: there is no substitute for one.
        """
        gain = fitting_gain(peak(audio))
        stored = pcm16(audio, gain)
        for start in segment_starts(len(stored), self.segment):
            piece, pad = segment(stored, start, self.segment)
            wave = piece.astype(np.float32) / FULL_SCALE
            if float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) < SILENT:
                yield start, None
                continue
            own: Fields = {"cqt": transform(wave), "audio": piece}
            yield start, with_levels(own, levels.measure([piece], self.sample_rate, gain), pad)

    def with_moments(self, samples: Samples, **counts: int) -> tuple[Samples, dict[str, Any]]:
        """What ``assemble`` returns: as ``gathered``, and the sums that mean and deviation of each bin come from."""
        frames, total, squares = 0, np.zeros(84), np.zeros(84)
        for _, fields in samples:
            cqt = fields["cqt"]
            assert isinstance(cqt, np.ndarray)
            magnitude = cqt[0].astype(np.float64)
            frames += magnitude.shape[1]
            total += magnitude.sum(axis=1)
            squares += (magnitude**2).sum(axis=1)
        gathered, summary = self.gathered(samples, **counts)
        return gathered, summary | {"frames": frames, "sum": total.tolist(), "sum_of_squares": squares.tolist()}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        from models.features import CQT

        frames = sum(s["frames"] for s in summaries["train"])
        total, squares = (np.sum([s[k] for s in summaries["train"]], axis=0) for k in ("sum", "sum_of_squares"))
        mean = total / frames
        spread = np.sqrt(np.maximum(squares / frames - mean**2, 0.0))
        return super().info(summaries, samples) | {
            "cqt": dataclasses.asdict(CQT) | {"compression": "natural logarithm"},
            "frames": 1 + self.segment // CQT.hop,
            "mean": np.round(mean, 5).tolist(),
            "std": np.round(spread, 5).tolist(),
        }


def transform(wave: np.ndarray) -> np.ndarray:
    """(n,) -> float32 (2, 84, L). In double precision, so that the last bit does not hang on the order of additions."""
    import torch

    from models.features import log_cqt

    try:
        return log_cqt(torch.from_numpy(wave).double()).float().numpy()
    except ValueError as error:
        raise BadInput(str(error)) from None


def collect(
    parts: Sequence[tuple[int, Fields | None]], key: Callable[[int], str], more: Callable[[int], Fields | None]
) -> tuple[Samples, int, int]:
    """Samples from a recording's segments with ``more`` fields by start; how many were silent, and how many ``more`` refused."""
    samples: Samples = []
    silent = refused = 0
    for start, fields in parts:
        extra = more(start) if fields is not None else None
        if fields is None:
            silent += 1
        elif extra is None:
            refused += 1
        else:
            samples.append((key(start), fields | extra))
    return samples, silent, refused
