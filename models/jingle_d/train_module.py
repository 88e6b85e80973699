"""Jingle_D under training: the generator's loss and its adversaries', in one step of two optimizers.

The generator runs once a step. What judges its output sees a copy without history; the gradients there are weighed (or balanced) and sent
back through the codec's decoder and the generator in one pass, so no discriminator learns from the generator's loss.

Shapes: B samples, C latent channels, T frames of a crop, n audio samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.codecs import codec_of
from models.codecs.standardisation import Standardisation
from models.jingle_d import data as facts
from models.jingle_d import objectives
from models.jingle_d.balancer import Balancer
from models.jingle_d.config import AUDIO_ADVERSARY, Losses, ModelConfig, value_at
from models.jingle_d.discriminators import AudioDiscriminator, LatentDiscriminator, StyleDiscriminator
from models.jingle_d.mixer import Mixed, Mixer
from pipeline.config import RunConfig
from pipeline.train_module import Batch, Engine, build_optimizer
from pipeline.train_module import TrainModule as BaseModule

LAST = 10**12  # a step at which every schedule has ended
BALANCED = (*objectives.AUDIO_TERMS, *AUDIO_ADVERSARY)
OF_LATENTS = ("latent_adversary", "style_ambiguity")
MASK_REGULARISATION = ("mask_overlap", "mask_coverage", "mask_variance")

Terms = dict[str, Tensor]


class Decoder(nn.Module):
    """The frozen codec's: latents (B, C, T) as stored -> (B, n). Its weights are the codec's, none of this module."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        self.data = data

    def forward(self, latent: Tensor) -> Tensor:
        return codec_of(self.data, latent.device.type).decode(latent)


class TrainModule(BaseModule):
    """``mixer`` is the generator; all the other networks are its adversaries."""

    headline = ("loss", "onset_correlation", "chroma_correlation", "normalised_complementarity")

    latent_mean: Tensor  # (C, 1)
    latent_std: Tensor

    def __init__(self, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(config, data)
        assert isinstance(config.model, ModelConfig)
        self.model_config = config.model
        facts.check_data(config, self.model_config, data)
        channels = int(data["latent"]["channels"])
        latent, audio = self.model_config.latent_discriminator, self.model_config.audio_discriminator
        balancer = self.model_config.balancer
        self.mixer = Mixer(channels, self.model_config)
        self.style = StyleDiscriminator(channels, self.model_config.style)
        self.latent_discriminator = LatentDiscriminator(channels, latent) if latent else None
        self.audio_discriminator = AudioDiscriminator(audio) if audio else None
        self.balancer = Balancer(BALANCED, balancer) if balancer else None
        self.decoder = Decoder(data)
        self.mel = facts.onset_mel(data, objectives.ONSET_WINDOW, objectives.ONSET_HOP)
        scale = facts.standardisation(data)
        # Facts of the data, not weights: they come with the manifest, not with a checkpoint.
        self.register_buffer("latent_mean", scale.mean, persistent=False)
        self.register_buffer("latent_std", scale.std, persistent=False)

    @classmethod
    def typical_data(cls, config: RunConfig) -> dict[str, Any]:
        return facts.typical_data(config)

    def example_batch(self, batch_size: int) -> Batch:
        return facts.example_batch(self.data, batch_size, self.config.seed, self.config.data.partner)

    def compiled(self) -> Iterator[nn.Module]:
        """The cascade's layers and who judges latents. Judging sound takes complex numbers, which the compiler does not know."""
        yield from self.mixer.cascade.layers
        yield from (judge for judge in (self.style, self.latent_discriminator) if judge is not None)

    @property
    def scale(self) -> Standardisation:
        """Between latents as stored and standardised ones."""
        return Standardisation(self.latent_mean, self.latent_std)

    @property
    def frames(self) -> int:
        """Of what the networks were trained on."""
        return self.model_config.frames or facts.frames(self.data)

    def decode(self, latent: Tensor) -> Tensor:
        """Standardised (B, C, T) -> (B, n); gradients pass."""
        wave: Tensor = self.decoder(self.scale.invert(latent))
        return wave

    def recomputed(self) -> Iterator[nn.Module]:
        """Of the cascade only the layers: a stage ends in a spectral norm, which is iterated in every forward of training."""
        yield from self.mixer.cascade.layers
        yield self.decoder
        if self.audio_discriminator is not None:
            yield from self.audio_discriminator.scales

    def training_step(self, batch: Batch, step: int) -> Terms:
        """``loss`` is the generator's and ``loss_discriminator`` its adversaries'; they share no weights, and each asks for its own."""
        clean = self._pair(batch, "train")
        noise = value_at(self.model_config.noise, step)
        seen = [self._noisy(x, noise, f"noise/{i}", batch["position"]) for i, x in enumerate(clean)]
        mixed = self.mixer(*seen, self.scale)
        with torch.no_grad():
            heard = tuple(self.decode(x) for x in (*clean, mixed.heard))
        wave = self.decode(mixed.latent)
        weights = weights_at(self.model_config.losses, step)
        loss, terms = self._generator(mixed, wave, heard, weights, batch["position"])
        told = self._adversaries(mixed.latent.detach(), wave.detach(), clean, heard[:2], batch["position"])
        return {"loss": loss, "loss_discriminator": torch.stack(list(told.values())).sum()} | {
            name: value.detach() for name, value in (terms | told).items()
        }

    @torch.no_grad()
    def validation_step(self, batch: Batch, step: int) -> Terms:
        """The terms without adversaries, weighed as their schedules end, so that checkpoints compare; and what people look at."""
        clean = self._pair(batch, "valid")
        mixed = self.mixer(*clean, self.scale)
        wave = self.decode(mixed.latent)
        given, target, heard = (self.decode(x) for x in (*clean, mixed.heard))
        terms = objectives.audio_terms(objectives.AUDIO_TERMS, wave, given, target, heard, self.mel)
        terms |= objectives.mask_terms(mixed.input_mask, mixed.target_mask, self.model_config.variance_floor)
        weights = weights_at(self.model_config.losses, LAST)
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return {
            "loss": loss,
            "onset_correlation": 1 - terms["rhythm"],
            "chroma_correlation": 1 - terms["harmony"],
            "complementarity": 1 - terms["mask_overlap"],
            "normalised_complementarity": 1 - terms["mask_disjoint"],
            "spectrum": terms["spectrum"],
        }

    def _pair(self, batch: Batch, stream: str) -> tuple[Tensor, Tensor]:
        """Standardised input and target (B, C, T): crops at places of their own, keyed by position."""
        shuffled = self.model_config.shuffle_targets and stream == "train"
        sides = zip(facts.FIELDS, facts.pair(batch, shuffled), strict=True)
        crops = (
            facts.crop(latent, self.model_config.frames, self.random, f"{stream}/{name}", batch["position"])
            for name, latent in sides
        )
        given, target = (self.scale.apply(latent) for latent in crops)
        return given, target

    def _noisy(self, latent: Tensor, deviation: float, stream: str, position: Tensor) -> Tensor:
        if deviation == 0:
            return latent
        noise = self.random.normal(f"jingle_d/{stream}", position, latent.shape[1:], latent.device)
        return latent + deviation * noise

    def _generator(
        self, mixed: Mixed, wave: Tensor, heard: tuple[Tensor, ...], weights: dict[str, float], position: Tensor
    ) -> tuple[Tensor, Terms]:
        """The weighted sum of all terms, and the terms. With a balancer its gradient is not that of the sum, and is meant to be so."""
        of_masks = objectives.mask_terms(mixed.input_mask, mixed.target_mask, self.model_config.variance_floor)
        wanted = [name for name in BALANCED if weights[name] > 0]
        audio, pull = pulled(
            wave, lambda leaf: self._audio_terms(wanted, leaf, heard, position), weights, self.balancer
        )
        latent, nudge = pulled(mixed.latent, lambda leaf: self._latent_terms(leaf, weights), weights, None)
        terms = of_masks | audio | latent
        value = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        sent = torch.stack([weights[name] * value for name, value in of_masks.items()]).sum() + pull + nudge
        return value.detach() + sent - sent.detach(), terms

    def _audio_terms(self, wanted: list[str], wave: Tensor, heard: tuple[Tensor, ...], position: Tensor) -> Terms:
        given, target, let_through = heard
        own = [name for name in wanted if name in objectives.AUDIO_TERMS]
        terms = objectives.audio_terms(own, wave, given, target, let_through, self.mel)
        adversary = [name for name in wanted if name in AUDIO_ADVERSARY]
        if adversary and self.audio_discriminator is not None:
            logits, made = self.audio_discriminator(self._excerpt(wave, position))
            found = {"audio_adversary": objectives.taken_for_real(logits)}
            if "feature_matching" in adversary:
                with torch.no_grad():
                    sides = [
                        self.audio_discriminator(self._excerpt(recording, position))[1] for recording in (given, target)
                    ]
                found["feature_matching"] = torch.stack(
                    [objectives.features_apart(real, made) for real in sides]
                ).mean()
            terms |= {name: found[name] for name in adversary}
        return terms

    def _latent_terms(self, latent: Tensor, weights: Mapping[str, float]) -> Terms:
        terms: Terms = {}
        if weights["latent_adversary"] > 0 and self.latent_discriminator is not None:
            terms["latent_adversary"] = objectives.taken_for_real([self.latent_discriminator(latent)])
        if weights["style_ambiguity"] > 0:
            terms["style_ambiguity"] = objectives.style_ambiguous(self.style(latent))
        return terms

    def _adversaries(
        self, latent: Tensor, wave: Tensor, clean: tuple[Tensor, Tensor], heard: tuple[Tensor, ...], position: Tensor
    ) -> Terms:
        """What each of them minimises; of real recordings a step sees every sample's input or its target, in turn by position."""
        turn = (position % 2 == 0).to(latent.device, non_blocking=True)
        told = {"told_style": objectives.style_learned(*(self.style(x) for x in clean))}
        if self.latent_discriminator is not None:
            real = torch.where(turn[:, None, None], clean[0], clean[1])
            told["told_latent"] = objectives.told_apart(*([self.latent_discriminator(x)] for x in (real, latent)))
        if self.audio_discriminator is not None:
            given, target = heard
            recording = torch.where(turn[:, None], given, target)
            sides = (self._excerpt(x, position) for x in (recording, wave))
            told["told_audio"] = objectives.told_apart(*(self.audio_discriminator(x)[0] for x in sides))
        return told

    def _excerpt(self, wave: Tensor, position: Tensor) -> Tensor:
        """(B, n) -> what of it the audio discriminators hear."""
        assert self.model_config.audio_discriminator is not None
        return facts.crop(wave, self.model_config.audio_discriminator.excerpt, self.random, "excerpt", position)

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        mixer = list(self.mixer.parameters())
        own = {id(p) for p in mixer}
        parts = {"generator": mixer, "discriminator": [p for p in self.parameters() if id(p) not in own]}
        return {name: build_optimizer(part, self.config.optimizer_of(name)[0]) for name, part in parts.items()}

    def averaged_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in super().averaged_parameters() if name.startswith("mixer."))

    def optimize(self, engine: Engine, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], step: int) -> Terms:
        """One forward of the generator, one backward for both losses, then both step."""
        logged: Terms = {}
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        for number, (piece, fraction) in enumerate(engine.micro_batches(batch)):
            self._iterate_spectral_norms(number == 0)
            values = engine.training_step(piece, step)
            engine.backward((values["loss"] + values["loss_discriminator"]) * fraction)
            for name, value in values.items():
                logged[name] = logged.get(name, 0.0) + value.detach() * fraction
        if self.balancer is not None:
            self.balancer.settle()
        for name, optimizer in optimizers.items():
            suffix = "" if name == "generator" else f"_{name}"
            logged[f"grad_norm{suffix}"] = engine.step(optimizer, self.config.optimizer_of(name)[1])
        return logged

    def _iterate_spectral_norms(self, wanted: bool) -> None:
        """Their power iterations are state: one a step, however many micro-batches it has."""
        for part in self.mixer.modules():
            if isinstance(part, nn.utils.parametrizations._SpectralNorm):
                part.train(wanted)

    def sample(self, batch: Batch, folder: Path, step: int) -> None:
        """Pictures and audio of a pair."""
        from models.jingle_d.showing import show_pair

        show_pair(self, batch, folder, step)


def weights_at(losses: Losses, step: int) -> dict[str, float]:
    """Each term's weight at ``step``; those of the mask regularisation with their common factor."""
    weights = {name: value_at(getattr(losses, name), step) for name in Losses.model_fields}
    common = weights.pop("mask_regularisation")
    return {name: common * weight if name in MASK_REGULARISATION else weight for name, weight in weights.items()}


def pulled(
    tensor: Tensor, judge: Callable[[Tensor], Terms], weights: Mapping[str, float], balancer: Balancer | None
) -> tuple[Terms, Tensor]:
    """The terms that ``judge`` finds in a copy of ``tensor`` without history, detached; and a scalar to send them back.

    The scalar's gradient at ``tensor`` is that of the terms, weighed or balanced.
    """
    with torch.enable_grad():
        leaf = tensor.detach().requires_grad_()
        terms = judge(
            leaf.view_as(leaf)
        )  # a module that is watched (torch's FLOP counter) may not be given the leaf itself
        if not terms:
            return {}, tensor.new_zeros(())
        if balancer is None:
            total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
            (pull,) = torch.autograd.grad(total, leaf)
        else:
            each = {name: torch.autograd.grad(value, leaf, retain_graph=True)[0] for name, value in terms.items()}
            pull = balancer(each, weights)
    return {name: value.detach() for name, value in terms.items()}, (tensor * pull).sum()
