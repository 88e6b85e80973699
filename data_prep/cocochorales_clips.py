"""What both of DisMix's cases cut out of CocoChorales: clips of single voices, their log-mels, and queries out of other tracks.

A query shows an instrument and nothing else of its source: it comes from another track of the sample's own shard, so that a shard
depends on its own inputs and on nothing else.
"""

from __future__ import annotations

import dataclasses
import math
import random
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from data_prep.cocochorales_reader import SAMPLE_RATE, scan_tracks
from data_prep.stage import Fields, Input, Samples, Stage
from pipeline.manifest import SPLITS

if TYPE_CHECKING:
    from models.features import MelSpec

LEVEL = 0.1  # RMS of a mixture
SILENT = 1e-4  # RMS below which a stem does not sound
MEL_BATCH = 1 << 21  # samples; bounds the memory of one mel computation
DEFAULT_LICENCE = (
    "CocoChorales: Google LLC, Creative Commons Attribution 4.0 (magenta.tensorflow.org/datasets/cocochorales)."
)
SHARED_CODE = (
    "data_prep.cocochorales_reader:read_track",
    "data_prep.audio:decode",
    "data_prep.cocochorales_clips",
    "data_prep.shards:ShardWriter",
    "models.features:log_mel",
)


@dataclass(frozen=True)
class Clip:
    """Where one stem was cut: ``start`` in seconds, ``instrument`` an index, ``pitch`` the MIDI number of a held note."""

    track: str
    voice: int
    start: float
    instrument: int
    pitch: int | None = None


class QueryBank:
    """Clips with their log-mels (B, F), by instrument."""

    def __init__(self, entries: Iterable[tuple[Clip, np.ndarray]]) -> None:
        self._entries: dict[int, list[tuple[Clip, np.ndarray]]] = {}
        for clip, mel in entries:
            self._entries.setdefault(clip.instrument, []).append((clip, mel))
        self._shared = {i for i, found in self._entries.items() if len({clip.track for clip, _ in found}) > 1}

    def serves(self, clips: Iterable[Clip]) -> bool:
        """Whether each of ``clips`` has its instrument on another track."""
        return all(clip.instrument in self._shared for clip in clips)

    def draw(self, rng: random.Random, clip: Clip, count: int) -> list[tuple[Clip, np.ndarray]]:
        """``count`` random entries of the clip's instrument on tracks other than its own; ``serves`` must hold."""
        entries = self._entries[clip.instrument]
        drawn: list[tuple[Clip, np.ndarray]] = []
        while len(drawn) < count:
            entry = entries[rng.randrange(len(entries))]
            if entry[0].track != clip.track:
                drawn.append(entry)
        return drawn


@dataclass(frozen=True)
class Mixture:
    """What a sample is made of: ``mixture`` (bands, F) and ``sources`` (N, bands, F), float32 log-mel; ``clips`` by source."""

    key: str
    clips: tuple[Clip, ...]
    gain: float
    mixture: np.ndarray
    sources: np.ndarray


@dataclass(frozen=True)
class TrackMixtures:
    """What a track gives: its mixtures, and clips with their log-mels (bands, F) as queries for other tracks; how many mixtures were
    left out as silent."""

    name: str
    mixtures: tuple[Mixture, ...]
    bank: tuple[tuple[Clip, np.ndarray], ...]
    silent: int


@dataclass(frozen=True)
class ChoraleStage(Stage):
    """``sources`` voices a mixture, all of different ``instruments``, with ``queries`` clips for each."""

    sources: int
    queries: int
    instruments: tuple[str, ...]
    dataset: ClassVar[str] = "cocochorales"
    frames: ClassVar[int]

    @property
    @abstractmethod
    def mel(self) -> MelSpec: ...

    @abstractmethod
    def notes(self, mixtures: Sequence[Mixture]) -> np.ndarray:
        """int64 (instruments, pitches), how often each is heard."""

    @abstractmethod
    def own_fields(self, mixture: Mixture) -> Fields:
        """The fields that only this case has."""

    def own_facts(self, mixture: Mixture) -> dict[str, Any]:
        """What only this case adds to ``meta``."""
        return {}

    def query_facts(self, clip: Clip) -> list[Any]:
        """A query in ``meta``."""
        return [clip.track, clip.voice, clip.start]

    @property
    def seconds(self) -> float:
        return self.frames * self.mel.hop / SAMPLE_RATE

    def scan(self, source: Path) -> list[Input]:
        return scan_tracks(source)

    def licence(self, source: Path) -> str:
        own = source / "LICENCE.txt"
        return own.read_text().strip() if own.is_file() else DEFAULT_LICENCE

    def leak_signatures(self, item: Input) -> tuple[str, ...]:
        """All stems' contents: the same recording under another name has the same."""
        stems = sorted(f.hash for f in item.files if f.path.endswith(".wav") and f.size > 1024)
        return ("/".join(stems),) if len(stems) > 1 else ()

    def assemble(self, loaded: Sequence[TrackMixtures]) -> tuple[Samples, dict[str, Any]]:
        bank = QueryBank(entry for track in loaded for entry in track.bank)
        mixtures = [mixture for track in loaded for mixture in track.mixtures]
        usable = [mixture for mixture in mixtures if bank.serves(mixture.clips)]
        # The loader permutes within windows of neighbours, so mixtures of one track must not stand next to each other
        random.Random(f"{self.recipe}/order/{loaded[0].name if loaded else ''}").shuffle(usable)
        samples = [(mixture.key, self._fields(mixture, bank)) for mixture in usable]
        return samples, moments(mel for mixture in usable for mel in (mixture.mixture, mixture.sources)) | {
            "samples": len(usable),
            "notes": self.notes(usable).tolist(),
            "no_query": len(mixtures) - len(usable),
            "silent": sum(track.silent for track in loaded),
        }

    def _fields(self, mixture: Mixture, bank: QueryBank) -> Fields:
        rng = random.Random(f"{self.recipe}/{mixture.key}/queries")
        drawn = [bank.draw(rng, clip, self.queries) for clip in mixture.clips]
        meta = {
            "track": mixture.clips[0].track,
            "start": mixture.clips[0].start,
            "gain": mixture.gain,
            "queries": [[self.query_facts(clip) for clip, _ in queries] for queries in drawn],
        }
        shared: Fields = {
            "mixture": mixture.mixture,
            "sources": mixture.sources,
            "queries": np.stack([np.stack([mel for _, mel in queries]) for queries in drawn]),
            "instrument": np.array([clip.instrument for clip in mixture.clips], np.int64),
            "meta": meta | self.own_facts(mixture),
        }
        return shared | self.own_fields(mixture)

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        return {
            "instruments": list(self.instruments),
            "sources": self.sources,
            "queries": self.queries,
            "frames": self.frames,
            "seconds": self.seconds,
            "sample_rate": SAMPLE_RATE,
            "mel": mel_facts(self.mel),
            **standardisation(summaries["train"]),
            "samples": samples,
        }

    def hours(self, summaries: dict[str, list[dict[str, Any]]]) -> float:
        return sum(s["samples"] for split in SPLITS for s in summaries[split]) * self.seconds / 3600


def rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2)))


def query_gain(wave: np.ndarray, sources: int) -> float:
    """What brings a query to the level that one of ``sources`` equally loud sources has in a mixture of LEVEL."""
    return LEVEL / math.sqrt(sources) / max(rms(wave), SILENT)


def log_mels(crops: Sequence[np.ndarray], spec: MelSpec) -> np.ndarray:
    """(len(crops), B, F) float32 from crops of one length that include ``spec.margin`` at either end.

    Computed in double precision, so that the last bit does not hang on the order of additions.
    """
    import torch

    from models.features import log_mel

    if not crops:
        return np.zeros((0, spec.bands, 0), np.float32)
    step = max(1, MEL_BATCH // len(crops[0]))
    batches = [
        log_mel(torch.from_numpy(np.stack(crops[i : i + step])), spec, context=True).float().numpy()
        for i in range(0, len(crops), step)
    ]
    return np.concatenate(batches)


def moments(arrays: Iterable[np.ndarray]) -> dict[str, Any]:
    """``count``, ``sum`` and ``sum_of_squares`` of all values, which add up over shards."""
    count, total, squares = 0, 0.0, 0.0
    for array in arrays:
        values = array.astype(np.float64)
        count, total, squares = count + values.size, total + float(values.sum()), squares + float((values**2).sum())
    return {"count": count, "sum": total, "sum_of_squares": squares}


def standardisation(summaries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """``mean`` and ``std`` from several ``moments``."""
    count, total, squares = (sum(s[k] for s in summaries) for k in ("count", "sum", "sum_of_squares"))
    mean = total / count
    return {"mean": round(mean, 5), "std": round(math.sqrt(squares / count - mean**2), 5)}


def mel_facts(spec: MelSpec) -> dict[str, Any]:
    """A mel's settings as they stand in a manifest."""
    facts = {k: v for k, v in dataclasses.asdict(spec).items() if k != "sample_rate"}
    return facts | {"compression": "natural logarithm"}


def balance_rows(split: str, instruments: Sequence[str], notes: np.ndarray) -> list[str]:
    """Rows of a card's table from (instruments, pitches) counts."""
    return [
        f"| {split} | {name} | {row.sum()} | {row.min()} | {row.mean():.1f} | {row.max()} | {(row == 0).sum()} |"
        for name, row in zip(instruments, notes, strict=True)
    ]
