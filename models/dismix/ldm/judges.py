"""The judges of the LDM case: which note a source plays in each frame, and which instrument plays it.

They learn from, and are measured on, clean sources that have been through the codec: what they are then asked is what the model does,
not what the codec leaves out. Silence is a class of the pitch judge.

Shapes: K clips, F mel bands, T mel frames, P pitch classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from models.codecs.base import MelCodec
from models.dismix.judges import Judge, Recipe, fit, kept
from models.dismix.ldm.rendering import to_mel
from models.dismix.ldm.training import LdmModule
from pipeline.loader import Evaluation
from pipeline.manifest import Manifest

RECIPE = Recipe(steps=500)
REACH = 5  # frames that a layer of the pitch judge looks at
LAYERS = 3
WIDTH = 128
BATCH = 16


class FrameJudge(nn.Module):
    """Convolutions over time, the mel bands as channels: a note for every frame, out of its neighbourhood of 130 ms."""

    def __init__(self, mel_bands: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(LAYERS):
            conv = nn.Conv1d(WIDTH if i else mel_bands, WIDTH, REACH, padding="same")
            layers += [conv, nn.GroupNorm(1, WIDTH), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv1d(WIDTH, classes, 1))

    def forward(self, mel: Tensor) -> Tensor:
        """(K, F, T) standardised log-mel -> (K, P, T) logits."""
        return self.layers(mel)


class Judges(nn.Module):
    def __init__(self, mel_bands: int, classes: int, instruments: int, recipe: Recipe) -> None:
        super().__init__()
        self.pitch = FrameJudge(mel_bands, classes)
        self.instrument = Judge(mel_bands, instruments, recipe)

    @torch.no_grad()
    def verdict(self, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, F, T) standardised log-mel -> pitch class (B, N, T), instrument (B, N), features (B, N, D) of the latter's judge."""
        flat, lead = mel.flatten(0, 1), mel.shape[:2]
        features = self.instrument.encoder(flat)
        heard = self.pitch(flat).argmax(1), self.instrument.head(features).argmax(-1), features
        pitch, instrument, features = (x.unflatten(0, lead) for x in heard)
        return pitch, instrument, features


def trained_judges(
    module: LdmModule, codec: MelCodec, manifest: Manifest, folder: Path, recipe: Recipe = RECIPE
) -> Judges:
    """Judges for the module's data, codec, pitch classes and length of clips, trained unless ``folder`` has them."""
    sizes, info = module.sizes, manifest.info

    def build() -> Judges:
        return Judges(info["mel"]["bands"], sizes.pitch_classes, len(info["instruments"]), recipe)

    def learn(judges: Judges) -> None:
        parts = list(clean_sources(module, codec, manifest, "valid", recipe.clips))
        mel, pitch, instrument = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
        with torch.enable_grad():
            fit(judges.pitch, mel, pitch, recipe)
            fit(judges.instrument, mel, instrument, recipe)

    facts = [manifest.identity, sizes.frames, sizes.pitch_low, sizes.pitch_high]
    return kept(folder, facts, recipe, build, learn)


def clean_sources(
    module: LdmModule, codec: MelCodec, manifest: Manifest, split: str, at_most: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Clips of a split's sources after the codec, in batches: mels (K, F, T) standardised, classes (K, T), instruments (K,)."""
    frames, clips = module.sizes.frames, 0
    for batch in Evaluation(manifest, split, batch_size=BATCH):
        stored = (
            torch.cat([batch["mixture_latent"][:, None], batch["sources_latent"]], dim=1).float().to(module.mean.device)
        )
        mel = to_mel(module, codec, module.members_scale(stored.shape[1]).apply(stored))[:, 1:]
        pieces = mel.shape[-1] // frames
        mel = mel[..., : pieces * frames].unflatten(-1, (pieces, frames)).movedim(-2, 2)  # (B, N, pieces, F, T)
        pitch = module.classes(batch["pitch"])[..., : pieces * frames].unflatten(-1, (pieces, frames))
        instrument = batch["instrument"][..., None].expand(-1, -1, pieces)
        yield module.standardise(mel).flatten(0, 2), pitch.flatten(0, 2).clone(), instrument.flatten().clone()
        clips += instrument.numel()
        if clips >= at_most:
            return
