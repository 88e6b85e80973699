"""What the LDM case knows of its data: facts of the manifest, crops of a batch, and the scale of latents.

Shapes: B mixtures, N sources, Q queries of each, F mel bands, T' and T mel frames of the data and of a crop, L' and L latent frames
(a quarter of them), W latent features, 8 latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.codecs.standardisation import Standardisation
from models.dismix.config import LdmCase
from models.dismix.ldm.vae import LATENT
from models.dismix.typical import common
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch

SHRINK = 4  # mel frames a latent frame


@dataclass(frozen=True)
class View:
    """What a step looks at: crops of T frames, at the same place in the mixture and in its sources."""

    mixture: Tensor  # (B, F, T) log-mel
    mixture_latent: Tensor  # (B, 8, L, W) as stored
    sources_latent: Tensor  # (B, N, 8, L, W) as stored
    queries: Tensor  # (B, N, F, T or ``query_frames``) log-mel, out of other tracks
    pitch: Tensor  # (B, N, T) MIDI numbers and the label of silence


def check_data(config: RunConfig, sizes: LdmCase, data: dict[str, Any]) -> None:
    """UserError where the data cannot be what this config trains on."""
    if "latent" not in data:
        raise UserError(
            f"the LDM case trains on latents, and {config.data.recipe} holds none: set data.codec=meldct or data.codec=audioldm2."
        )
    for key in ("frames", "query_frames"):
        if (getattr(sizes, key) or 0) > int(data["frames"]):
            raise UserError(
                f"model.ldm.{key} is {getattr(sizes, key)}, the data has {data['frames']} frames a sample; set it to at most that."
            )


def standardisation(data: dict[str, Any]) -> tuple[Standardisation, Standardisation]:
    """Of mixtures and of sources; the sources' numbering means nothing, so they share one."""
    sources = Standardisation.from_info(data, "sources_latent")
    return Standardisation.from_info(data, "mixture_latent"), sources.pooled(1)


def view(batch: Batch, sizes: LdmCase, random: KeyedRandom, stream: str) -> View:
    """Crops of ``sizes.frames`` frames that the samples' positions draw, of one of Q queries that they draw as well."""
    frames, asked = sizes.frames, sizes.frames_of_query
    position, queries = batch["position"], batch["queries"]
    samples, sources, clips = queries.shape[:3]
    spare, spare_query = (batch["mixture"].shape[-1] - frames) // SHRINK, (queries.shape[-1] - asked) // SHRINK
    draws = random.uniform(
        f"dismix/{stream}", position, (1 + 2 * sources,)
    )  # on the CPU: they become indices of slices
    starts = (draws[:, 0] * (spare + 1)).long().clamp_max(spare).tolist()
    query_starts = (draws[:, 1 + sources :] * (spare_query + 1)).long().clamp_max(spare_query).tolist()
    chosen = (draws * clips).long().clamp_max(clips - 1).tolist()

    def crop(name: str, axis: int, scale: int) -> Tensor:
        rows = [row.narrow(axis, scale * starts[i], scale * frames // SHRINK) for i, row in enumerate(batch[name])]
        return torch.stack(
            [row.float() if row.is_floating_point() else row for row in rows]
        )  # CPU autocast joins no float16

    picked = [
        queries[i, j, chosen[i][1 + j]].narrow(-1, SHRINK * query_starts[i][j], asked).float()
        for i in range(samples)
        for j in range(sources)
    ]
    return View(
        crop("mixture", -1, SHRINK),
        crop("mixture_latent", -2, 1),
        crop("sources_latent", -2, 1),
        torch.stack(picked).unflatten(0, (samples, sources)),
        crop("pitch", -1, SHRINK),
    )


def typical_data(config: RunConfig) -> dict[str, Any]:
    """Of ``cocochorales_ldm`` and its demo with the config's codec; it names no weights, for nothing was encoded."""
    sources, queries, frames, bands = (2 if config.data.recipe.endswith("_demo") else 4), 1, 400, 64
    shape = (LATENT, frames // SHRINK, bands // SHRINK)

    def field(*lead: int) -> dict[str, Any]:
        zeros, ones = np.zeros((*lead, LATENT)), np.ones((*lead, LATENT))
        return {"shape": [*lead, *shape], "mean": zeros.tolist(), "std": ones.tolist()}

    latent = {
        "codec": config.data.codec, "sample_rate": 16000, "hop": 640, "channels": LATENT, "weights_hash": None,
        "fields": {"mixture_latent": field(), "sources_latent": field(sources), "queries_latent": field(sources, queries)},
    }  # fmt: skip
    labels = {"rest": 128, "pitch_classes": 129}
    return common(config, bands, 160, frames) | labels | {"sources": sources, "queries": queries, "latent": latent}


def example_batch(data: dict[str, Any], sizes: LdmCase, batch_size: int, seed: int) -> Batch:
    """Random numbers in the shapes of the recipe; mels scattered as the data's, latents as the standardisation expects."""
    generator = torch.Generator().manual_seed(seed)
    sources, queries, frames = int(data["sources"]), int(data["queries"]), int(data["frames"])
    picture = (int(data["mel"]["bands"]), frames)
    latent = tuple(data["latent"]["fields"]["mixture_latent"]["shape"])

    def mels(*lead: int) -> Tensor:
        return torch.randn(batch_size, *lead, *picture, generator=generator) * float(data["std"]) + float(data["mean"])

    def latents(*lead: int) -> Tensor:
        return torch.randn(batch_size, *lead, *latent, generator=generator).half()

    pitch = torch.randint(sizes.pitch_low, sizes.pitch_high + 1, (batch_size, sources, frames), generator=generator)
    pitch[torch.rand(pitch.shape, generator=generator) < 0.1] = int(data["rest"])
    return {
        "mixture": mels(),
        "queries": mels(sources, queries),
        "mixture_latent": latents(),
        "sources_latent": latents(sources),
        "pitch": pitch,
        "instrument": torch.randint(0, len(data["instruments"]), (batch_size, sources), generator=generator),
        "position": torch.arange(batch_size),
    }
