"""What a step looks at: tracks that go into the console, the reference, and what the mix is compared with.

Shapes: B samples, N tracks, n samples of a segment or of the crop of it that a step sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.blocks.console.console import Console
from models.blocks.console.layout import Layout
from models.blocks.console.settings import Settings, from_turns
from models.diff_mst.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom
from pipeline.train_module import Batch

FULL_SCALE = 32768  # of PCM16
SILENT = -69.0  # LUFS; what is no louder stays as it is
LOUDEST_TRIM = 40.0  # dB
STEMS, MIXTURE_SEGMENT = 4, {"slakh_stems": 524288, "slakh_stems_demo": 131072}
VOCAL_SEGMENT = {"vocal_pairs": 262144, "vocal_pairs_demo": 131072, "vocal_pairs_styles_demo": 131072}
CALM = 0.25  # of the way from a knob's start to its ends: how far a made mix strays


@dataclass(frozen=True)
class View:
    heard: Tensor  # (B, N, m) float, brought to the config's loudness: the whole segment
    tracks: Tensor  # (B, N, n) that of it which is mixed
    reference: Tensor | None  # (B, 2, m)
    like: Tensor  # (B, 2, n or m): what the mix is compared with
    counts: Tensor  # (B,) 1, or 0 for a sample that lacks what it needs


def check_data(config: RunConfig, model: ModelConfig, data: dict[str, Any]) -> None:
    """UserError where the data cannot be what this config trains on."""
    tracks = data.get("tracks", [])
    pairs = "raw" in tracks
    if pairs == (model.reference == "made"):
        wanted = "multitracks (slakh_stems)" if pairs else "pairs of raw and mixed (vocal_pairs)"
        raise UserError(
            f"model.reference={model.reference} trains on {wanted}; {config.data.recipe} holds {', '.join(tracks)}."
        )
    count = 1 if pairs else len(tracks) - 1
    if count != model.console.tracks:
        raise UserError(
            f"model.console.tracks is {model.console.tracks}, {config.data.recipe} has {count}; set it to that."
        )
    if model.reference == "other" and not config.data.partner:
        raise UserError("a reference of another song comes beside each sample: set data.partner=true.")
    seen = data["segment"] // 2 if model.reference == "made" else data["segment"]
    if model.crop and model.crop > seen:
        raise UserError(f"model.crop is {model.crop} samples, the data has {seen}; set it to at most that.")
    if seen < model.encoder.shortest:
        raise UserError(
            f"{seen} samples are too short for the encoder, which needs {model.encoder.shortest}: fewer channels, or a smaller hop."
        )
    seen = model.crop or seen
    if model.lead_in * data["sample_rate"] > seen / 2:
        raise UserError(
            f"model.lead_in leaves less than half of {seen / data['sample_rate']:.2f} s to be judged; set it lower."
        )


def waves(pcm: Tensor) -> Tensor:
    """int16 -> float, full scale 1."""
    return pcm.float() / FULL_SCALE


def trimmed(wave: Tensor, lufs: Tensor, loudness: float | None) -> Tensor:
    """Waves (B, N, n) of loudness ``lufs`` (B, N), or (B, 1) for all channels together, brought to ``loudness``."""
    return wave if loudness is None else wave * 10 ** (trim(lufs, loudness)[..., None] / 20)


def trim(lufs: Tensor, loudness: float) -> Tensor:
    """Decibels from ``lufs`` to ``loudness``; none for silence."""
    return torch.where(lufs > SILENT, (loudness - lufs).clamp(max=LOUDEST_TRIM), torch.zeros_like(lufs))


def view(batch: Batch, model: ModelConfig, layout: Layout, random: KeyedRandom, stream: str | None) -> View:
    """``stream`` names the draws of a crop; None: the whole segment."""
    if model.reference == "made":
        return _made(batch, model, layout, random)
    raw, mixed = waves(batch["raw"]), waves(batch["mixed"])
    lufs = batch["lufs"]
    raw = trimmed(raw, lufs[:, :1], model.track_loudness)
    counts = torch.ones(len(raw), device=raw.device)
    reference, like = None, mixed
    if model.reference == "same":
        reference = trimmed(waves(batch["reference"]), lufs[:, 2:3], model.reference_loudness)
        counts = batch["has_reference"].float()
    if model.reference == "other":
        reference = like = trimmed(waves(batch["other_mixed"]), batch["other_lufs"][:, 1:2], model.reference_loudness)
    if stream is None or model.crop is None:
        return View(raw, raw, reference, like, counts)
    starts = _starts(raw.shape[-1], model.crop, batch["position"], random, stream)
    aligned = _cropped(mixed, starts, model.crop) if like is mixed else like
    return View(raw, _cropped(raw, starts, model.crop), reference, aligned, counts)


def _starts(length: int, crop: int, position: Tensor, random: KeyedRandom, stream: str) -> list[int]:
    spare = length - crop
    draws = random.uniform(f"diff_mst/{stream}/crop", position, ())  # on the CPU: they become indices of slices
    return (draws * (spare + 1)).long().clamp_max(spare).tolist()


def _cropped(wave: Tensor, starts: list[int], crop: int) -> Tensor:
    return torch.stack([row.narrow(-1, start, crop) for row, start in zip(wave, starts, strict=True)])


def _made(batch: Batch, model: ModelConfig, layout: Layout, random: KeyedRandom) -> View:
    """Both halves of a multitrack through one console with settings drawn by position: the first is the reference, the second wanted."""
    stems = trimmed(waves(batch["stems"]), batch["lufs"][:, :-1], model.track_loudness)
    half = stems.shape[-1] // 2
    first, second = stems[..., :half], stems[..., half : 2 * half]
    settings = drawn_settings(layout, batch["position"], random, stems.device)
    console = Console(layout)
    with torch.no_grad():
        reference, wanted = console(first, settings).mix, console(second, settings).mix
    return View(second, second, reference, wanted, torch.ones(len(stems), device=stems.device))


def drawn_settings(layout: Layout, position: Tensor, random: KeyedRandom, device: torch.device) -> Settings:
    """Settings around each knob's start, (B, S, 1, P), a function of the position alone."""
    found = {}
    for name, section in layout.sections.items():
        strips = layout.tracks if name == "track" else 1
        draws = random.uniform(f"diff_mst/made/{name}", position, (strips, 1, len(section)), device)
        start = torch.tensor([knob.to_turn(knob.start) for knob in section]).to(draws, non_blocking=True)
        found[name] = from_turns(start + CALM * (draws - start), section)
    return found


def typical_data(config: RunConfig) -> dict[str, Any]:
    """Of the recipes ``vocal_pairs`` and ``slakh_stems``, and of their demos."""
    recipe = config.data.recipe
    if recipe in MIXTURE_SEGMENT:
        return {
            "sample_rate": 44100,
            "segment": MIXTURE_SEGMENT[recipe],
            "tracks": ["bass", "drums", "guitar", "piano", "mixture"],
        }
    segment = VOCAL_SEGMENT.get(recipe, VOCAL_SEGMENT["vocal_pairs"])
    return {"sample_rate": 48000, "segment": segment, "tracks": ["raw", "mixed", "reference"]}


def example_batch(config: RunConfig, data: dict[str, Any], batch_size: int) -> Batch:
    """Noise with the colour of a voice in the recipe's shapes; mixed is the same, softer and brighter."""
    generator = torch.Generator().manual_seed(config.seed)
    length = int(data["segment"])

    def pcm(wave: Tensor) -> Tensor:
        return (wave.clamp(-0.99, 0.99) * FULL_SCALE).to(torch.int16)

    def voice(*lead: int) -> Tensor:
        white = torch.randn(batch_size, *lead, length, generator=generator)
        return 0.05 * torch.nn.functional.avg_pool1d(white.flatten(0, -2)[:, None], 9, 1, 4)[:, 0].unflatten(
            0, (batch_size, *lead)
        )

    position = torch.arange(batch_size)
    if "raw" not in data["tracks"]:
        lufs = torch.full((batch_size, STEMS + 1), -30.0)
        return {"stems": pcm(voice(STEMS)), "lufs": lufs, "position": position}
    raw = voice(1)
    mixed = 3 * torch.cat([raw - 0.5 * raw.roll(1, -1)] * 2, dim=1)
    other = 2 * voice(2)
    found = {
        "raw": pcm(raw), "mixed": pcm(mixed), "reference": pcm(mixed.roll(length // 2, -1)),
        "has_reference": torch.ones(batch_size, dtype=torch.bool),
        "song": torch.arange(batch_size), "lag": torch.zeros(batch_size, dtype=torch.int64), "lufs": torch.full((batch_size, 3), -20.0),
    }  # fmt: skip
    if config.data.partner:
        found |= {f"other_{name}": value for name, value in found.items()} | {"other_mixed": pcm(other)}
    return found | {"position": position}
