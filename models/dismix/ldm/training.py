"""The LDM case under training: what is minimised on a batch, with keyed randomness, and what is shown of it (Section 5).

Shapes: B mixtures, N sources of each, M = 1 + N members of a set (the mixture first), F mel bands, T mel frames, P pitch classes,
L = T / 4 latent frames, W latent features, 8 latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from models.codecs.standardisation import Standardisation
from models.dismix.ldm import data as facts
from models.dismix.ldm.diffusion import Noise
from models.dismix.ldm.dit import Block
from models.dismix.ldm.model import TIMBRE, Latents, LdmDisMix
from models.dismix.ldm.over_time import Layer
from models.dismix.ldm.vae import CODEC, frozen_vae
from models.dismix.losses import barlow_twins_diagonal, gaussian_error_learned, kl_to_prior, pitch_error
from models.dismix.train_module import TrainModule
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.train_module import Batch

# Whatever holds more than it is given.
RECOMPUTED = (ResnetBlock2D, Upsample2D, Attention, Layer, Block)


class LdmModule(TrainModule):
    """Latents in and latents out; the codec stands between them and mels."""

    latent_mean: Tensor  # (2, 8, 1, 1), of mixtures and of sources
    latent_std: Tensor

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        self.sizes = self.model_config.ldm
        facts.check_data(config, self.sizes, data)
        latent = data["latent"]
        vae = frozen_vae(self.sizes.vae, latent["weights_hash"]) if latent["codec"] == CODEC else None
        self.model = LdmDisMix(self.model_config, vae)
        self.noise = Noise(self.sizes.diffusion)
        scales = facts.standardisation(data)
        self.register_buffer("latent_mean", torch.stack([s.mean for s in scales]), persistent=False)
        self.register_buffer("latent_std", torch.stack([s.std for s in scales]), persistent=False)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def compiled(self) -> Iterator[nn.Module]:
        """What renders: its layers have most of the arithmetic."""
        yield from self.model.renderer.dit.blocks

    def example_batch(self, batch_size: int) -> Batch:
        return facts.example_batch(self.data, self.sizes, batch_size, self.config.seed)

    def members_scale(self, members: int) -> Standardisation:
        """Of (B, M, 8, L, W): the mixture's for the first member and the sources' for all others."""
        number = torch.ones(members, dtype=torch.int64, device=self.latent_mean.device)
        number[0] = 0
        return Standardisation(self.latent_mean[number], self.latent_std[number])

    def classes(self, pitch: Tensor) -> Tensor:
        """MIDI numbers and the data's label of silence -> pitch classes of the transcriber. UserError for a note it does not know."""
        low, high, rest = self.sizes.pitch_low, self.sizes.pitch_high, int(self.data["rest"])
        if (low, high) != (0, 127):  # the paper's size knows all notes, and need not wait for a GPU to say so
            strange = pitch[(pitch != rest) & ((pitch < low) | (pitch > high))]
            if strange.numel():
                raise UserError(
                    f"the data holds the note {int(strange[0])} and model.ldm.pitch_low..pitch_high are {low}..{high}; "
                    f"widen them with --set."
                )
        return torch.where(pitch == rest, self.sizes.pitch_classes - 1, pitch - low)

    def mixture_input(self, mel: Tensor, latent: Tensor) -> Tensor:
        """What the mixture encoder takes: log-mel (B, F, T) as a picture for a VAE, else the latent (B, 8, L, W) as stored."""
        if self.model.mixture_encoder.vae_encoder is not None:
            return mel.transpose(-1, -2)[:, None]
        return Standardisation(self.latent_mean[0], self.latent_std[0]).apply(latent)

    def recomputed(self) -> Iterator[nn.Module]:
        trained = (self.model.query_encoder, self.model.pitch_encoder, self.model.renderer.dit)
        return (m for part in trained for m in part.modules() if isinstance(m, RECOMPUTED))

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """-L_DisMix of Eq. (8), and its terms; a mean over the batch."""
        return self._step(batch, "train", self._progress(step))

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The terms at threshold 0.5 and the posterior's mean; without Barlow Twins, which is no mean over samples."""
        return self._step(batch, "valid", 1.0)

    def _step(self, batch: Batch, stream: str, progress: float) -> dict[str, Tensor]:
        seen = facts.view(batch, self.sizes, self.random, f"{stream}/crop")
        training, position = stream == "train", batch["position"]
        latents = self.model.encode(
            self.mixture_input(seen.mixture, seen.mixture_latent),
            self.standardise(seen.queries),
            *(self._draws(position, seen) if training else (0.5, None)),
        )
        wanted = self.classes(seen.pitch)
        terms = self._rendering(latents, seen, position, stream) | {
            "kl": kl_to_prior(latents.timbre_mean, latents.timbre_log_variance),
            "bce": pitch_error(latents.pitch_logits, wanted),
        }
        if training and self.model_config.barlow_twins:
            # No source has a place of its own in a random ensemble: all sources of a group are samples of one correlation
            pair = self._groups(latents.query_embedding, latents.timbre)
            terms["barlow_twins"] = barlow_twins_diagonal(*(x.flatten(1, 2)[:, :, None] for x in pair))
        right = latents.pitch_logits.argmax(-1) == wanted
        return {
            "loss": self._weighted(terms, progress),
            **terms,
            "transcription_accuracy": right.float().mean(),
            "scale": self.model.elbo.log_scale.detach().exp(),
        }

    def _draws(self, position: Tensor, seen: Any) -> tuple[Tensor, Tensor]:
        """Thresholds (B, N, T, P) of the binarisation and noise (B, N, 8 W) of the timbre draw, keyed by position."""
        sources, device = seen.pitch.shape[1], seen.pitch.device
        bits = (sources, self.sizes.frames, self.sizes.pitch_classes)
        threshold = self.random.uniform("dismix/threshold", position, bits, device)
        return threshold, self.random.normal("dismix/timbre", position, (sources, TIMBRE), device)

    def _rendering(self, latents: Latents, seen: Any, position: Tensor, stream: str) -> dict[str, Tensor]:
        """-log p(z | S) of the mixture and of its sources, z_0 predicted out of z_t at a step that the position draws."""
        clean = torch.cat([seen.mixture_latent[:, None], seen.sources_latent], dim=1)
        clean = self.members_scale(clean.shape[1]).apply(clean)
        draw = self.random.uniform(f"dismix/{stream}/step", position, (2,), clean.device)
        step = (draw[:, 0] * self.sizes.diffusion.steps).long().clamp_max(self.sizes.diffusion.steps - 1)
        noise = self.random.normal(f"dismix/{stream}/noise", position, clean.shape[1:], clean.device)
        noisy = self.noise.add(clean, noise, step)
        members = self.model.members(self.model.condition(latents.timbre, latents.pitch))
        rendered = self.model.renderer(noisy, members, self.noise.level(step), draw[:, 1] < self.sizes.alone)
        scale = self.model.elbo.log_scale
        return {
            "reconstruction_mixture": gaussian_error_learned(clean[:, 0], rendered[:, 0], scale),
            "reconstruction_sources": gaussian_error_learned(clean[:, 1:], rendered[:, 1:], scale),
        }

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """A picture and the audio of the first mixture with the pitches of two sources swapped."""
        from models.dismix.ldm.showing import show_swap

        show_swap(self, batch, folder, step)
