"""What Jingle_D knows of its data: facts of the manifest, crops of a batch, the scale of latents.

Shapes: B samples, C latent channels, L frames of the data, T of a crop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.codecs.standardisation import Standardisation
from models.features import MelSpec
from models.jingle_d.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch

INPUT, TARGET = FIELDS = ("input_latent", "target_latent")
SEGMENTS = {"audio_pairs": 384000, "audio_pairs_songs": 384000}  # samples; the demos' are a quarter
DEMO_SEGMENT = 96000
ONSET_FLOOR = 1e-3  # of mel magnitudes: some 60 dB below a loud band
RATE, HOP, CHANNELS = 24000, 320, 128  # of encodec and of mdct alike


def check_data(config: RunConfig, model: ModelConfig, data: dict[str, Any]) -> None:
    """UserError where the data cannot be what this config trains on."""
    if not set(FIELDS) <= data.get("latent", {}).get("fields", {}).keys():
        raise UserError(
            f"Jingle_D trains on latents of pairs, and {config.data.folder_name} holds none: set data.recipe=audio_pairs and "
            "data.codec=encodec (or mdct, which needs no weights)."
        )
    has = frames(data)
    if model.frames is not None and model.frames > has:
        raise UserError(f"model.frames is {model.frames}, the data has {has} frames a sample; set it to at most that.")
    if model.shuffle_targets and not config.data.partner:
        raise UserError("model.shuffle_targets takes the target of another pair: set data.partner=true as well.")


def frames(data: dict[str, Any]) -> int:
    return int(data["latent"]["fields"][INPUT]["shape"][-1])


def standardisation(data: dict[str, Any]) -> Standardisation:
    """To mean 0 and deviation 1 by channel, (C, 1): one for both sides, so that a mean of two latents is still one."""
    sides = [Standardisation.from_info(data, field) for field in FIELDS]
    return Standardisation(torch.stack([s.mean for s in sides]), torch.stack([s.std for s in sides])).pooled(1)


def onset_mel(data: dict[str, Any], window: int, hop: int) -> MelSpec:
    """The mel whose rises are onsets, as far up as the codec keeps anything: what lies above is rounding, and moves with everything."""
    latent, rate = data["latent"], int(data["sample_rate"])
    kept = rate / 2 * latent["channels"] / latent["hop"] if latent["codec"] == "mdct" else rate / 2
    return MelSpec(rate, bands=40, window=window, hop=hop, f_min=30.0, f_max=min(8000.0, kept), floor=ONSET_FLOOR)


def pair(batch: Batch, shuffled: bool) -> tuple[Tensor, Tensor]:
    """(B, C, L) each, as stored: an input, and its own target or that of its partner."""
    return batch[INPUT], batch[f"other_{TARGET}" if shuffled else TARGET]


def crop(latents: Tensor, length: int | None, random: KeyedRandom, stream: str, position: Tensor) -> Tensor:
    """(B, ..., L) -> (B, ..., length) float32, at a place that each sample's position draws."""
    if length is None or length >= latents.shape[-1]:
        return latents
    spare = latents.shape[-1] - length
    draw = random.uniform(f"jingle_d/{stream}", position, ())  # on the CPU: they become indices of slices
    starts = (draw * (spare + 1)).long().clamp_max(spare).tolist()
    return torch.stack([row[..., start : start + length].float() for row, start in zip(latents, starts, strict=True)])


def typical_data(config: RunConfig) -> dict[str, Any]:
    """Of the recipe with the config's codec; it names no weights, for nothing was encoded."""
    segment = SEGMENTS.get(config.data.recipe, DEMO_SEGMENT)
    field = {"shape": [CHANNELS, segment // HOP], "mean": [0.0] * CHANNELS, "std": [1.0] * CHANNELS}
    return {
        "sample_rate": RATE,
        "segment": segment,
        "seconds": segment / RATE,
        "tracks": ["input", "target"],
        "latent": {
            "codec": config.data.codec or "mdct", "sample_rate": RATE, "hop": HOP, "channels": CHANNELS, "weights_hash": None,
            "source": None, "fields": {name: dict(field) for name in FIELDS},
        },
    }  # fmt: skip


def example_batch(data: dict[str, Any], batch_size: int, seed: int, partner: bool) -> Batch:
    """Random numbers in the shapes of the recipe, scattered as the standardisation expects."""
    generator = torch.Generator().manual_seed(seed)
    scale = standardisation(data)
    names = [*FIELDS, *(f"other_{name}" for name in FIELDS if partner)]
    shape = (batch_size, *data["latent"]["fields"][INPUT]["shape"])
    latents = {name: scale.invert(torch.randn(shape, generator=generator)).half() for name in names}
    return latents | {"position": torch.arange(batch_size)}
