"""What CD4MT knows of its data: facts of the manifest, crops of a batch, the scale of latents.

Shapes: B samples, S stems, C latent channels, L frames of the data, T of a crop.
"""

from __future__ import annotations

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
SEGMENTS = {"slakh_stems": 524288, "slakh_stems_demo": 131072}  # samples
LATENTS = {"music2latent": (4096, 1536), "mdct": (512, 0)}  # samples a frame, and before the first
CHANNELS = 64


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


def frames(data: dict[str, Any]) -> int:
    return int(data["latent"]["fields"][FIELD]["shape"][-1])


def stems(data: dict[str, Any]) -> list[str]:
    """Their names, in the order of the latents."""
    return [name for name in data["tracks"] if name != "mixture"]


def standardisation(data: dict[str, Any], sigma_data: float) -> Standardisation:
    """To mean 0 and deviation ``sigma_data``, by stem and channel."""
    unit = Standardisation.from_info(data, FIELD)
    return Standardisation(unit.mean, unit.std / sigma_data)


def crop(latents: Tensor, length: int | None, random: KeyedRandom, stream: str, position: Tensor) -> Tensor:
    """(B, S, C, L) -> (B, S, C, T) at a place that each sample's position draws."""
    if length is None or length == latents.shape[-1]:
        return latents
    spare = latents.shape[-1] - length
    draw = random.uniform(f"cd4mt/{stream}/crop", position, ())  # on the CPU: they become indices of slices
    starts = (draw * (spare + 1)).long().clamp_max(spare).tolist()
    return torch.stack([row[..., start : start + length] for row, start in zip(latents, starts, strict=True)])


def typical_data(config: RunConfig) -> dict[str, Any]:
    """Of ``slakh_stems`` and its demo with the config's codec; it names no weights, for nothing was encoded."""
    codec = config.data.codec or "mdct"
    segment = SEGMENTS.get(config.data.recipe, SEGMENTS["slakh_stems"])
    hop, before = LATENTS.get(codec, LATENTS["mdct"])
    shape = [len(STEMS), CHANNELS, (segment - before) // hop]
    zeros, ones = ([[value] * CHANNELS for _ in STEMS] for value in (0.0, 1.0))
    return {
        "sample_rate": 44100,
        "segment": segment,
        "seconds": segment / 44100,
        "tracks": [*STEMS, "mixture"],
        "latent": {
            "codec": codec, "sample_rate": 44100, "hop": hop, "channels": CHANNELS, "weights_hash": None, "source": None,
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
