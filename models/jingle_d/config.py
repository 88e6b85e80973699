"""Hyperparameters of Jingle_D: masks that decide who is heard where, a cascade that makes one recording of two, and who judges it.

Every term of the loss has its weight in ``losses``; a weight is a number or a ``Ramp`` over steps. No torch import:
``launch.py --dry-run`` reads this.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config import ModelSection, Ramp, Section

Scheduled = Annotated[float, Field(ge=0)] | Ramp


def value_at(scheduled: float | Ramp, step: int) -> float:
    """A number, or what its ramp says at ``step``."""
    return scheduled.at(step) if isinstance(scheduled, Ramp) else scheduled


class CascadeShape(Section):
    """Two stages of transformer layers, as wide as what they read: two and three latents side by side."""

    layers: int = Field(6, gt=0)
    heads: int = Field(8, gt=0)
    feed_forward: tuple[int, int] = (1024, 1536)
    dropout: float = Field(0.1, ge=0, lt=1)


class MaskShape(Section):
    """The mask generator."""

    hidden: int = Field(160, gt=0)
    head: int = Field(80, gt=0)  # channels between the two convolutions that end in a mask
    heads: int = Field(4, gt=0)  # of the attention between the recordings

    @model_validator(mode="after")
    def _heads_divide(self) -> MaskShape:
        if self.hidden % self.heads:
            raise ValueError(f"heads {self.heads} does not divide {self.hidden} channels")
        return self


class StyleShape(Section):
    """The style discriminator: two convolutions over time, of 3 and 5 frames."""

    channels: tuple[int, int] = (192, 128)


class LatentDiscriminatorShape(Section):
    """Four convolutions over time, of 3, 5, 7 and 9 frames, and two linear layers."""

    channels: tuple[int, int, int, int] = (256, 512, 512, 256)
    hidden: int = Field(128, gt=0)


class AudioDiscriminatorShape(Section):
    """Multi-scale STFT discriminators (Défossez et al. 2210.13438, Section 3.4): a network for each window."""

    windows: tuple[int, ...] = Field((2048, 1024, 512, 256, 128), min_length=1)  # samples; hops are a quarter
    channels: int = Field(32, gt=0)
    excerpt: int | None = Field(
        None, gt=0
    )  # samples of each recording that they hear in a step, at a random place; None: all


class BalancerSection(Section):
    """Of the gradients at the decoded audio (2210.13438, Eq. (5)): each term gets the share that its weight says, whatever its scale."""

    decay: float = Field(0.999, gt=0, lt=1)  # beta
    total: float = Field(1.0, gt=0)  # R: the norm of a sample's gradient, all terms together


class Losses(Section):
    """Weights; what each term is stands in ``objectives.py`` and in the README. The defaults are the ancestor's."""

    rmse_input: Scheduled = 0.3
    rmse_target: Scheduled = 0.3
    envelope: Scheduled = 0.5  # squared correlation of the output's envelope with both recordings'
    rhythm: Scheduled = 0.0  # onsets fall where the input's do
    harmony: Scheduled = 0.0  # pitch classes are the target's
    spectrum: Scheduled = 0.0  # what sounds is what the masks let through

    mask_regularisation: Scheduled = 0.1  # of the next three, which keep their ratios
    mask_overlap: Scheduled = 10.0
    mask_coverage: Scheduled = 0.5
    mask_variance: Scheduled = 5.0
    mask_balance: Scheduled = 15.0
    mask_disjoint: Scheduled = 0.0  # 1 - normalised complementarity

    latent_adversary: Scheduled = 0.15
    style_ambiguity: Scheduled = 0.0
    audio_adversary: Scheduled = 0.0
    feature_matching: Scheduled = 0.0


AUDIO_ADVERSARY = ("audio_adversary", "feature_matching")


class ModelConfig(ModelSection):
    """The ``model:`` section."""

    live: ClassVar[tuple[str, ...]] = ("losses", "noise", "variance_floor")  # what --resume may change
    optimizers: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    system: Literal["jingle_d"]
    frames: int | None = Field(None, gt=1)  # of a training sample, at a random place; None: all that the data has
    shuffle_targets: bool = False  # train every input with another pair's target (needs data.partner)
    cascade: CascadeShape = CascadeShape()
    masks: MaskShape = MaskShape()
    style: StyleShape = StyleShape()
    latent_discriminator: LatentDiscriminatorShape | None = LatentDiscriminatorShape()
    audio_discriminator: AudioDiscriminatorShape | None = None
    balancer: BalancerSection | None = None

    losses: Losses = Losses()
    noise: Scheduled = 0.1  # deviation of what is added to both latents in training
    variance_floor: float = Field(0.05, ge=0)  # of a mask over time; below it mask_variance counts

    @model_validator(mode="after")
    def _excerpts_fill_windows(self) -> ModelConfig:
        audio = self.audio_discriminator
        if audio and audio.excerpt and audio.excerpt < max(audio.windows):
            raise ValueError(
                f"audio_discriminator.excerpt {audio.excerpt} is shorter than its window of {max(audio.windows)}"
            )
        return self

    @model_validator(mode="after")
    def _weights_have_their_networks(self) -> ModelConfig:
        if self.latent_discriminator is None and self.losses.latent_adversary != 0:
            raise ValueError(
                "losses.latent_adversary weighs a network that is not there: set it to 0, or give latent_discriminator"
            )
        given = [name for name in AUDIO_ADVERSARY if getattr(self.losses, name) != 0]
        if self.audio_discriminator is None and given:
            raise ValueError(
                f"losses.{given[0]} weighs a network that is not there: set it to 0, or give audio_discriminator"
            )
        return self
