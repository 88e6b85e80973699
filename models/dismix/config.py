"""Hyperparameters of DisMix, arXiv 2408.10807: the simple case (Section 4) and the LDM case (Section 5).

One class for both, because both minimise the same objective (Eq. (8)) and are ablated by the same keys; the sizes of
their modules stand in a section of each case's own, and a config shows only the section of its case.
No torch import: ``launch.py --dry-run`` reads this.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config import ModelSection, Section


class SimpleCase(Section):
    """Sizes of the simple case; the defaults are the paper's (Appendix B.1, Tables 4, 5): 18.6M parameters."""

    width: int = Field(768, gt=0)  # channels of the five hidden Conv1d of each spectrogram encoder
    latent: int = Field(64, gt=0)  # of e_m, e_q, the pitch latent, the timbre latent and the source latent alike
    hidden: int = Field(256, gt=0)  # width of the pitch and timbre MLPs
    depth: int = Field(6, gt=0)  # hidden layers of each of them
    translator: int = Field(64, gt=0)  # hidden width of the three linears from pitch bits to pitch latent
    gru: int = Field(256, gt=0)  # hidden size of the decoder's GRU, per direction


class VaeShape(Section):
    """An encoder or decoder of AudioLDM2's VAE family."""

    channels: int = Field(gt=0)
    multipliers: tuple[int, ...] = (1, 2, 4)
    res_blocks: int = Field(2, gt=0)


class TimbreShape(Section):
    channels: int = 128
    kernel: int = 5
    layers: int = 3


class DitShape(Section):
    blocks: int = 3
    heads: int = 4
    width: int = 512  # one patch: 4 frames x 16 features x 8 channels
    condition: int = 1024  # likewise of the source latents, 32 features wide
    feed_forward: int = 2048
    patches: int = 25


class Diffusion(Section):
    steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02


class LdmCase(Section):
    """Sizes of the LDM case (Section 5.2, Appendix B.2)."""

    sources: int = 4
    mel_bands: int = 64
    frames: int = 400
    pitch_classes: int = 129  # MIDI 0-127 and silence
    latent_channels: int = 8
    mixture_encoder: VaeShape = VaeShape(channels=128)
    query_encoder: VaeShape = VaeShape(channels=64)
    transcriber: VaeShape = VaeShape(channels=64)
    translator: VaeShape = VaeShape(channels=64)
    timbre_encoder: TimbreShape = TimbreShape()
    dit: DitShape = DitShape()
    diffusion: Diffusion = Diffusion()


class ModelConfig(ModelSection):
    """The ``model:`` section. Each term of Eq. (8) has a weight; 0 (or false) is its ablation (Table 1).

    Every term is a sum over dimensions and sources and a mean over the batch, as in the paper, which weighs all by 1.
    """

    live: ClassVar[tuple[str, ...]] = (  # what --resume may change
        "sigma", "sigma_mixture", "reconstruction", "mixture_from_sources", "embedding", "kl", "bce", "barlow_twins",
        "curriculum_steps", "curriculum_start",
    )  # fmt: skip

    system: Literal["dismix"]
    case: Literal["simple", "ldm"]

    stochastic_binarisation: bool = True  # Eq. (4); false: the translator reads the pitch logits themselves
    sigma: float = Field(1.0, gt=0)  # of the Gaussian likelihood of standardised mels, first term of Eq. (6)
    sigma_mixture: float = Field(0.25, gt=0)  # sigma_m of Eq. (9)
    reconstruction: float = Field(1.0, ge=0)  # of mixture and sources
    mixture_from_sources: float = Field(0.0, ge=0)  # log p(x_m | S), Eq. (6) itself, beside what Section 4 has for it
    embedding: float = Field(1.0, ge=0)  # Eq. (9): the sum of source latents near the mixture's embedding
    kl: float = Field(1.0, ge=0)  # timbre posterior to N(0, I), last term of Eq. (6)
    bce: float = Field(1.0, ge=0)  # pitch logits, before binarisation
    barlow_twins: float = Field(1.0, ge=0)  # Eq. (7)
    barlow_twins_group: int = Field(32, ge=2)  # consecutive samples that share a correlation, on any number of ranks

    # Pitch first: every term but the BCE grows from ``curriculum_start`` times its weight to all of it, geometrically.
    curriculum_steps: int = Field(0, ge=0)  # 0, the paper: no curriculum
    curriculum_start: float = Field(0.04, gt=0, le=1)

    simple: SimpleCase = SimpleCase()
    ldm: LdmCase = LdmCase()

    @model_validator(mode="after")
    def _only_the_own_case(self) -> ModelConfig:
        other = "ldm" if self.case == "simple" else "simple"
        if other in self.model_fields_set:
            raise ValueError(f"'{other}' is not read where case is '{self.case}'; remove it, or set model.case={other}")
        return self

    @model_serializer(mode="wrap")
    def _show_the_own_case(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown: dict[str, Any] = handler(self)
        shown.pop("ldm" if self.case == "simple" else "simple", None)
        return shown
