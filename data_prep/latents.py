"""The second stage: shards of audio or mels in, shards of latents out, through the same engine.

    <data root>/<recipe>/            what a recipe made
    <data root>/<recipe>-<codec>/    one shard for each of its shards, of the same name, sample for sample in the same order

What is encoded: with a waveform codec every int16 array, for that is how recipes store audio (..., n); with a mel codec every float32
array (..., bands, frames) of shards whose ``info["mel"]`` is the codec's mel. ``stems`` becomes ``stems_latent``, float16 (..., *latent
shape): a float16 keeps 11 bits, far finer than any of the codecs reconstructs, and is half to store and to read. Waveforms are left behind
(they lie in the first folder, under the same numbers), all else is carried over, mels included: their systems look at both.

The manifest's ``info`` is the recipe's, and ``latent``: codec, sample_rate, hop, channels, weights_hash, computed_on (device types),
``fields`` {name: shape, mean, std}, and ``source`` (identity of the first folder's manifest). ``mean`` and ``std`` are over time (and a
mel latent's frequency) of the training split as stored, for every channel of every leading axis: (..., channels). Sums are float64, taken
by shard and added in the order of shards, so they do not depend on who computed which.

On one kind of machine the same latents come out the same to the bit, whatever the number of workers: a CPU worker computes with one thread,
and a batch never holds samples of two shards. A GPU rounds differently from a CPU; ``computed_on`` names both where both were at work.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.plan import PLAN_NAME, read_plan
from data_prep.shard_stage import ShardStage
from data_prep.stage import BadInput, Fields, Input, Samples
from models.codecs import ANALYTIC, MEL_CODECS, check_rate
from models.codecs.weights import Weights, checked_weights
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from pipeline.samples import Signature, SplitReader
from pipeline.shards import DamagedSample

if TYPE_CHECKING:
    from models.codecs.base import Codec

SUFFIX = "_latent"
FULL_SCALE = 32768.0  # of int16
BATCH = 1 << 21  # numbers that go through a codec at once; bounds its memory
DIGITS = 7  # of mean and std, as many as a float32 has


@dataclass(frozen=True)
class Source:
    """The shards that latents are made of: their dataset, the manifest's info and identity, their sample rate in Hz."""

    dataset: str
    info: Mapping[str, Any]
    identity: str
    sample_rate: int


@dataclass(frozen=True)
class LatentStage(ShardStage):
    """One input is one shard of the source."""

    codec_name: str
    mels: bool  # whether mels are encoded, not waveforms
    of: Source
    weights: Weights | None  # None for analytic codecs

    @property
    def dataset(self) -> str:
        return self.of.dataset

    @property
    def code(self) -> tuple[str, ...]:
        features = ("models.features:log_mel", "models.features:AUDIOLDM2") if self.codec_name in MEL_CODECS else ()
        own = (
            "data_prep.latents:LatentStage",
            "data_prep.shard_stage",
            "data_prep.shards:ShardWriter",
            "models.codecs.base",
        )
        return (*own, f"models.codecs.{self.codec_name}", *features)

    @property
    def codec(self) -> str:
        return self.codec_name

    @property
    def codec_hash(self) -> str | None:
        return None if self.weights is None else self.weights.identity

    def settings(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "codec": self.codec_name, "mels": self.mels, "sample_rate": self.of.sample_rate}

    def licence(self, source: Path) -> str:
        plan = read_plan(source)
        if plan is None:
            raise UserError(
                f"{source / PLAN_NAME} is missing or damaged; prepare {self.recipe} again, without --codec."
            )
        return (
            plan.licence if self.weights is None else f"{plan.licence}\n\nThe codec's weights: {self.weights.licence}"
        )

    def load(self, item: Input, read: Callable[[str], bytes]) -> Samples:
        samples = list(self.samples_of(item, read))
        for name in self.encoded(_signature(samples[0][1])) if samples else ():
            latents = self._encode([np.asarray(fields[name]) for _, fields in samples])
            for (key, fields), latent in zip(samples, latents, strict=True):
                if not np.isfinite(latent).all():
                    raise BadInput(f"the latent of {name} in sample {key} is not finite")
                fields[name + SUFFIX] = latent
                if not self.mels:
                    del fields[name]
        return samples

    def assemble(self, loaded: Sequence[Samples]) -> tuple[Samples, dict[str, Any]]:
        samples = list(itertools.chain.from_iterable(loaded))
        codec = self._loaded()
        behind = len(codec.latent_shape(codec.sample_rate)) - 1
        names = [name for name in (samples[0][1] if samples else {}) if name.endswith(SUFFIX)]
        sums = {name: _sums([np.asarray(fields[name]) for _, fields in samples], behind) for name in names}
        facts = {"sample_rate": codec.sample_rate, "hop": codec.hop, "channels": codec.channels}
        return samples, {"codec": facts, "computed_on": codec.device.type, "sums": sums}

    def info(self, summaries: dict[str, list[dict[str, Any]]], samples: dict[str, int]) -> dict[str, Any]:
        sums = [summary["sums"] for summary in summaries["train"] if summary["sums"]]
        facts = {
            "codec": self.codec_name,
            **summaries["train"][0]["codec"],
            "weights_hash": self.codec_hash,
            "computed_on": sorted({s["computed_on"] for split in summaries.values() for s in split}),
            "fields": {name: _statistics([s[name] for s in sums]) for name in sums[0]},
            "source": self.of.identity,
        }
        return {**self.of.info, "samples": samples, "latent": facts}

    def card(self, summaries: dict[str, list[dict[str, Any]]]) -> str:
        fields = next(summary["sums"] for summary in summaries["train"] if summary["sums"])
        weights = "It has no weights." if self.weights is None else f"Its weights have the identity {self.codec_hash}."
        return "\n".join(
            [
                f"Latents of `{self.recipe}` by the codec `{self.codec_name}`, sample for sample in the same order. {weights} "
                "What is encoded, stored and left behind stands at the head of `data_prep/latents.py`.",
                "",
                "| field | shape, float16 |",
                "|---|---|",
                *(f"| {name} | {' x '.join(map(str, facts['shape']))} |" for name, facts in fields.items()),
            ]
        )

    def encoded(self, signature: Signature) -> list[str]:
        """Which of a sample's arrays are audio or mels to encode."""
        dtype, axes = (np.float32, 2) if self.mels else (np.int16, 1)
        fitting = {name: shape for name, (kind, shape) in signature.items() if kind == dtype and len(shape) >= axes}
        return [name for name, shape in fitting.items() if not self.mels or shape[-2] == self.of.info["mel"]["bands"]]

    def _encode(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float16 latents of arrays of one field; those of one shape that stand together go through the codec together."""
        import torch

        codec, latents = self._loaded(), []
        encode = codec.encode_mel if self.mels else codec.encode  # type: ignore[attr-defined]
        for _, alike in itertools.groupby(arrays, key=lambda array: array.shape):
            queue = list(alike)
            size = max(1, BATCH // queue[0].size)
            for start in range(0, len(queue), size):
                batch = torch.from_numpy(np.stack(queue[start : start + size])).float()
                with _one_thread():
                    encoded = encode(batch if self.mels else batch / FULL_SCALE)
                latents += list(encoded.half().cpu().numpy())
        return latents

    def _loaded(self) -> Codec:
        return _codec(
            self.codec_name, self.of.sample_rate, None if self.weights is None else self.weights.folder.parent
        )


def latent_stage(folder: Path, codec: str) -> LatentStage:
    """The stage that makes latents of the shards in ``folder``.

    Raises UserError for shards that hold no audio or mels, or none that the codec takes, and for weights that are missing or damaged.
    """
    manifest = read_manifest(folder)
    rate = manifest.info.get("sample_rate")
    if rate is None:
        raise UserError(f"{folder} holds no audio (its manifest names no sample_rate); there is nothing to encode.")
    check_rate(codec, rate)
    weights = None if codec in ANALYTIC else checked_weights(codec)
    mels = codec in MEL_CODECS and "mel" in manifest.info
    if mels:
        _check_mel(manifest.recipe, codec, manifest.info["mel"])
    source = Source(manifest.dataset, manifest.info, manifest.identity, rate)
    stage = LatentStage(manifest.recipe, 1, codec, mels, source, weights)
    signature = _first_signature(folder)
    if not stage.encoded(signature):
        what = f"mels of {manifest.info['mel']['bands']} bands" if mels else "int16 audio"
        raise UserError(
            f"{folder} holds no {what} for codec {codec} to encode; its samples hold {', '.join(signature)}."
        )
    return stage


def _first_signature(folder: Path) -> Signature:
    reader = SplitReader(read_manifest(folder), "train")
    try:
        return reader.signature
    except DamagedSample as error:
        raise UserError(f"{error}; repair the shards with the command that made them.") from error
    finally:
        reader.close()


def _signature(fields: Fields) -> Signature:
    return {name: (value.dtype, value.shape) for name, value in fields.items() if isinstance(value, np.ndarray)}


def _check_mel(recipe: str, codec: str, mel: Mapping[str, Any]) -> None:
    from models.features import AUDIOLDM2

    for name in ("bands", "window", "hop", "f_min", "f_max", "floor"):
        wanted = getattr(AUDIOLDM2, name)
        if mel[name] != wanted:
            raise UserError(f"codec {codec} needs mels with {name} {wanted}, those of {recipe} have {mel[name]}.")


def _sums(latents: Sequence[np.ndarray], behind: int) -> dict[str, Any]:
    """Shape, count, sum and sum of squares of one field over samples and the ``behind`` axes behind its channels, in float64."""
    shape = latents[0].shape
    axes = tuple(range(len(shape) - behind, len(shape)))
    total = np.zeros(shape[: len(shape) - behind])
    squares = np.zeros_like(total)
    for latent in latents:
        if latent.shape != shape:
            raise BadInput(f"its latents differ in shape: {shape} and {latent.shape}")
        values = latent.astype(np.float64)
        total += values.sum(axes)
        squares += (values**2).sum(axes)
    count = len(latents) * math.prod(shape[len(shape) - behind :])
    return {"shape": list(shape), "count": count, "sum": total.tolist(), "squares": squares.tolist()}


def _statistics(sums: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    count = sum(shard["count"] for shard in sums)
    mean = sum(np.array(shard["sum"]) for shard in sums) / count
    variance = sum(np.array(shard["squares"]) for shard in sums) / count - mean**2
    std = np.sqrt(np.maximum(variance, 0.0))
    return {"shape": sums[0]["shape"], "mean": _rounded(mean).tolist(), "std": _rounded(std).tolist()}


def _rounded(values: np.ndarray) -> np.ndarray:
    """To DIGITS significant digits."""
    return np.vectorize(lambda value: float(f"{value:.{DIGITS - 1}e}"))(values)


@functools.cache
def _codec(name: str, sample_rate: int, weights_folder: Path | None) -> Codec:
    """One a process, from the folder that the plan was made with, whatever this process' environment names.

    Analytic codecs stay on the CPU: the transfer would cost more than the work.
    """
    import torch

    from models.codecs import load_codec

    device = "cpu"
    if name not in ANALYTIC and torch.cuda.is_available():
        device = f"cuda:{os.getpid() % torch.cuda.device_count()}"
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    return load_codec(name, weights_folder, device, sample_rate)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One order of additions, whatever the process was told about threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
