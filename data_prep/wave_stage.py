"""The base of every recipe whose samples are segments of audio: levels recorded per sample, hours and loudness on the card.

Every sample carries, beside the recipe's own fields and by track of ``tracks``, ``lufs``, ``peak``, ``clipped``, ``silence`` (see
``levels.measure``), and ``pad``: the zeros appended to a segment, in samples; 0 unless the recording is shorter than a segment.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from data_prep import levels
from data_prep.stage import Fields, Samples, Stage
from pipeline.errors import UserError
from pipeline.manifest import SPLITS

LEVELS_DOWN = 2  # how far below --source a layout is looked for
KEY_LENGTH = 48  # a member's name in a tar has 100 bytes, its field's name included
SHARED_CODE = (
    "data_prep.audio",
    "data_prep.compiled",
    "data_prep.levels:measure",
    "data_prep.loudness",
    "data_prep.segments",
    "data_prep.wave_stage:sample_key",
    "data_prep.shards:ShardWriter",
)


@dataclass(frozen=True)
class WaveStage(Stage):
    """``sample_rate`` in Hz; ``segment`` the length of a sample in samples."""

    sample_rate: int
    segment: int
    tracks: ClassVar[tuple[str, ...]]  # what the rows of a sample's levels are of
    default_licence: ClassVar[str]
    counted: ClassVar[dict[str, str]] = {}  # key of a summary -> the sentence on the card that its sum fills

    @property
    def seconds(self) -> float:
        return self.segment / self.sample_rate

    def licence(self, source: Path) -> str:
        """That of the folder, or of the folder that it lies in, else the dataset's."""
        for folder in (source, source.parent):
            if (folder / "LICENCE.txt").is_file():
                return (folder / "LICENCE.txt").read_text().strip()
        return self.default_licence

    def gathered(self, samples: Samples, **counts: int) -> tuple[Samples, dict[str, Any]]:
        """What ``assemble`` returns: the samples shuffled, because the loader permutes within windows of neighbours; the summary."""
        random.Random(f"{self.recipe}/order/{samples[0][0] if samples else ''}").shuffle(samples)
        return samples, levels.summarise([fields for _, fields in samples], len(self.tracks)) | counts

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        return {
            "sample_rate": self.sample_rate,
            "segment": self.segment,
            "seconds": self.seconds,
            "tracks": list(self.tracks),
            "samples": samples,
        }

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        module = type(self).__module__.replace(".", "/")
        every = [summary for split in SPLITS for summary in summaries[split]]
        lines = [
            f"Each sample is {self.seconds:.2f} s ({self.segment} samples) at {self.sample_rate} Hz; fields, shapes and units stand "
            f"at the head of `{module}.py`.",
            "",
            *(f"- {text.format(sum(s[key] for s in every))}" for key, text in self.counted.items()),
            "",
            "## Levels",
            "",
            *levels.table(summaries, self.tracks, self.seconds),
        ]
        return "\n".join(lines)

    def pictures(self, summaries: dict[str, list[dict[str, Any]]]) -> dict[str, bytes]:
        return {levels.PICTURE: levels.picture(summaries, self.tracks)}


def with_levels(own: Fields, measured: dict[str, Any], pad: Any) -> Fields:
    """A sample's fields with its levels and its padding."""
    import numpy as np

    return own | measured | {"pad": np.asarray(pad, np.int64)}


def sample_key(name: str, *numbers: int) -> str:
    """A key for WebDataset: no dot, no space, ASCII, short; a name that had to be changed carries a hash of what it was."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    if plain != name or len(plain) > KEY_LENGTH:
        plain = f"{plain[: KEY_LENGTH - 9]}-{xxhash.xxh3_64_hexdigest(name.encode())[:8]}"
    return "-".join((plain, *(f"{number:09d}" for number in numbers)))


def root_of(source: Path, inside: Iterable[str], layout: str) -> Path:
    """``source``, or the first folder up to two levels below, that has one of the folders ``inside``; UserError with the ``layout``
    otherwise."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; --source is where the dataset lies ({layout}).")
    names = sorted(path.name for path in source.iterdir())
    if not names:
        raise UserError(f"{source} is empty; expected {layout}.")
    level = [source]
    for _ in range(LEVELS_DOWN + 1):
        for folder in level:
            if any((folder / name).is_dir() for name in inside):
                return folder
        level = [
            below for folder in level for below in sorted(folder.iterdir()) if below.is_dir() and below.name[0] != "."
        ]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise UserError(f"{source} is not laid out as expected: {layout}; found {shown}.")
