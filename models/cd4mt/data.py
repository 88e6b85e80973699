"""What CD4MT knows of its data: facts of the manifest, crops of a batch, the form and the scale of latents.

A mel codec's latents have a frequency axis, (B, S, K, L, F) as stored; its places count as channels here, C = K F, so that every latent is
(B, S, C, L).

Shapes: B samples, S stems, C latent channels, L frames of the data, T of a crop.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.cd4mt.config import ModelConfig
from models.codecs.standardisation import Standardisation
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch

FIELD = "stems_latent"
STEMS = ("bass", "drums", "guitar", "piano")
SEGMENTS = {  # Hz and samples
    "slakh_stems": (44100, 524288),
    "slakh_stems_demo": (44100, 131072),
    "slakh_stems_16k_demo": (16000, 32000),
}
LATENTS = {  # samples a frame, and before the first; channels; what follows the frames
    "music2latent": (4096, 1536, 64, ()),
    "mdct": (512, 0, 64, ()),
    "meldct": (640, 0, 8, (16,)),
}


def check_data(config: RunConfig, model: ModelConfig, data: dict[str, Any]) -> None:
    """UserError where the data cannot be what this config trains on."""
    if FIELD not in data.get("latent", {}).get("fields", {}):
        raise UserError(
            f"CD4MT trains on latents of stems, and {config.data.folder_name} holds none: set data.recipe=slakh_stems and "
            "data.codec=music2latent (or mdct, which needs no weights)."
        )
    has = frames(data)
    if model.frames is not None and model.frames > has:
        raise UserError(f"model.frames is {model.frames}, the data has {has} frames a sample; set it to at most that.")


def latent_shape(data: dict[str, Any]) -> tuple[int, int, int]:
    """(S, C, L) of a sample."""
    count, channels, length, *places = data["latent"]["fields"][FIELD]["shape"]
    return count, channels * math.prod(places), length


def frames(data: dict[str, Any]) -> int:
    return latent_shape(data)[2]


def arranged(stored: Tensor) -> Tensor:
    """Latents as the codec has them, (B, S, C, L) or (B, S, K, L, F), -> (B, S, C, L)."""
    return stored if stored.ndim == 4 else stored.transpose(-1, -2).flatten(2, 3)


def as_stored(latents: Tensor, data: dict[str, Any]) -> Tensor:
    """(B, S, C, L) -> what the codec decodes."""
    places = data["latent"]["fields"][FIELD]["shape"][3:]
    return latents.unflatten(2, (-1, *places)).transpose(-1, -2) if places else latents


def stems(data: dict[str, Any]) -> list[str]:
    """Their names, in the order of the latents."""
    return [name for name in data["tracks"] if name != "mixture"]


def standardisation(data: dict[str, Any], model: ModelConfig) -> Standardisation:
    """To mean 0 and deviation ``sigma_data`` of (B, S, C, L): of each channel of a stem, or of a stem's channels together, which then keep
    their proportions."""
    unit = Standardisation.from_info(data, FIELD)
    _, channels, _ = latent_shape(data)
    mean, std = (t.reshape(*t.shape[:2], 1) for t in (unit.mean, unit.std))
    if model.standardise == "stem":
        std = std.square().mean(1, keepdim=True).sqrt().expand_as(std)
    each = channels // mean.shape[1]
    mean, std = (t.repeat_interleave(each, dim=1) for t in (mean, std))
    return Standardisation(mean, std / model.sigma_data)


def crop(latents: Tensor, length: int | None, random: KeyedRandom, stream: str, position: Tensor) -> Tensor:
    """(B, S, C, L) -> (B, S, C, T) at a place that each sample's position draws."""
    if length is None or length == latents.shape[-1]:
        return latents
    spare = latents.shape[-1] - length
    draw = random.uniform(f"cd4mt/{stream}/crop", position, ())  # on the CPU: they become indices of slices
    starts = (draw * (spare + 1)).long().clamp_max(spare).tolist()
    return torch.stack([row[..., start : start + length] for row, start in zip(latents, starts, strict=True)])


def way_to_latents(data: dict[str, Any]) -> list[str]:
    """From waveforms to what the network is told of, a line each."""
    latent, (count, channels, length) = data["latent"], latent_shape(data)
    stored = ", ".join(map(str, latent["fields"][FIELD]["shape"]))
    wave, formed = f"(B, {count}, {data['segment']})", f"(B, {count}, {channels}, {length})"
    return [
        f"waveforms {wave} at {data['sample_rate']} Hz, {data['seconds']:.1f} s -> {latent['codec']}: latents (B, {stored})",
        f"latents (B, {stored}) -> standardised: {formed} -> stacked: (B, {count * channels}, {length})",
    ]


def typical_data(config: RunConfig) -> dict[str, Any]:
    """Of Slakh's recipes with the config's codec; it names no weights, for nothing was encoded."""
    codec = config.data.codec or "mdct"
    rate, segment = SEGMENTS.get(config.data.recipe, SEGMENTS["slakh_stems"])
    hop, before, channels, places = LATENTS.get(codec, LATENTS["mdct"])
    shape = [len(STEMS), channels, (segment - before) // hop, *places]
    zeros, ones = ([[value] * channels for _ in STEMS] for value in (0.0, 1.0))
    return {
        "sample_rate": rate,
        "segment": segment,
        "seconds": segment / rate,
        "tracks": [*STEMS, "mixture"],
        "latent": {
            "codec": codec, "sample_rate": rate, "hop": hop, "channels": channels, "weights_hash": None, "source": None,
            "fields": {FIELD: {"shape": shape, "mean": zeros, "std": ones}},
        },
    }  # fmt: skip


def example_batch(data: dict[str, Any], batch_size: int, seed: int) -> Batch:
    """Random numbers in the shapes of the recipe, scattered as the standardisation expects."""
    generator = torch.Generator().manual_seed(seed)
    facts = data["latent"]["fields"][FIELD]
    scale = Standardisation.from_info(data, FIELD)
    latents = scale.invert(torch.randn(batch_size, *facts["shape"], generator=generator))
    present = torch.ones(batch_size, len(STEMS), dtype=torch.bool)
    return {FIELD: latents.half(), "present": present, "position": torch.arange(batch_size)}
