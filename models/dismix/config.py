"""Hyperparameters of DisMix, arXiv 2408.10807: the simple case (Section 4) and the LDM case (Section 5).

One class for both, because both minimise the same objective (Eq. (8)) and are ablated by the same keys; the sizes of
their modules stand in a section of each case's own, and a config shows only the section of its case.
No torch import: ``launch.py --dry-run`` reads this.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config import ModelSection, Section

SIMPLE_ONLY = ("simple", "sigma", "sigma_mixture", "mixture_from_sources", "embedding")


class SimpleCase(Section):
    """Sizes of the simple case; the defaults are the paper's (Appendix B.1, Tables 4, 5): 18.6M parameters."""

    width: int = Field(768, gt=0)  # channels of the five hidden Conv1d of each spectrogram encoder
    latent: int = Field(64, gt=0)  # of e_m, e_q, the pitch latent, the timbre latent and the source latent alike
    hidden: int = Field(256, gt=0)  # width of the pitch and timbre MLPs
    depth: int = Field(6, gt=0)  # hidden layers of each of them
    translator: int = Field(64, gt=0)  # hidden width of the three linears from pitch bits to pitch latent
    gru: int = Field(256, gt=0)  # hidden size of the decoder's GRU, per direction


class VaeShape(Section):
    """An encoder or decoder of AudioLDM2's VAE family; three multipliers: time and frequency shrink (or grow) by 4."""

    channels: int = Field(gt=0)
    multipliers: tuple[int, int, int] = (1, 2, 4)
    res_blocks: int = Field(2, gt=0)
    groups: int = Field(32, gt=0)  # of the group normalisation; must divide every level's channels

    @model_validator(mode="after")
    def _groups_divide(self) -> VaeShape:
        if wrong := [c for m in self.multipliers if (c := m * self.channels) % self.groups]:
            raise ValueError(f"groups {self.groups} does not divide {wrong[0]} channels")
        return self


class OverTimeShape(Section):
    """Networks of convolutions over time, which small machines can train; see ``ldm/over_time.py``."""

    query_encoder: int = Field(128, gt=0)  # channels
    transcriber: int = Field(256, gt=0)
    translator: int = Field(128, gt=0)
    layers: int = Field(3, gt=0)
    kernel: int = Field(3, gt=0)


class TimbreShape(Section):
    kernel: int = Field(5, gt=0)
    layers: int = Field(3, gt=0)
    groups: int = Field(8, gt=0)  # of the group normalisation


class DitShape(Section):
    """The widths follow from ``patch``: a patch has 16 features of 8 channels a frame, its condition twice as many."""

    patch: int = Field(4, gt=0)  # latent frames
    blocks: int = Field(3, gt=0)
    heads: int = Field(4, gt=0)
    feed_forward: int = Field(2048, gt=0)


class Diffusion(Section):
    """Noise variances rise linearly from ``beta_first`` to ``beta_last`` in ``steps`` (Ho et al. 2020)."""

    steps: int = Field(1000, gt=1)
    beta_first: float = Field(1e-4, gt=0, lt=1)
    beta_last: float = Field(0.02, gt=0, lt=1)
    sampler: Literal["ddim", "dpm"] = "dpm"  # what renders: DDIM (Song et al. 2021) or DPM-Solver++ (Lu et al. 2022)
    sampling_steps: int = Field(20, gt=0)


class LdmCase(Section):
    """Sizes of the LDM case; the defaults are the paper's (Section 5.2, Appendix B.2)."""

    frames: int = Field(400, gt=0)  # of the mel that a training sample shows; less than the data has: a random crop
    query_frames: int | None = Field(None, gt=0, multiple_of=4)  # of a query; None: as many as ``frames``
    pitch_low: int = Field(0, ge=0, le=127)  # MIDI notes that the transcriber knows, both inclusive, beside silence;
    pitch_high: int = Field(127, ge=0, le=127)  # they must cover the notes of the data
    vae: VaeShape = VaeShape(channels=128)  # the frozen one's published size, where no weights are named
    query_encoder: VaeShape = VaeShape(channels=64)
    transcriber: VaeShape = VaeShape(channels=64)
    translator: VaeShape = VaeShape(channels=64)
    over_time: OverTimeShape | None = None  # where given, in place of query encoder, transcriber and translator
    timbre_encoder: TimbreShape = TimbreShape()
    dit: DitShape = DitShape()
    diffusion: Diffusion = Diffusion()
    alone: float = Field(0.25, ge=0, le=1)  # share of training samples whose sources are rendered each by itself

    @property
    def frames_of_query(self) -> int:
        return self.query_frames or self.frames

    @property
    def pitch_classes(self) -> int:
        """The notes, and silence as the last class."""
        return self.pitch_high - self.pitch_low + 2

    @model_validator(mode="after")
    def _sizes_fit(self) -> LdmCase:
        whole = 4 * self.dit.patch
        if self.frames % whole:
            raise ValueError(
                f"frames {self.frames} is no multiple of {whole}, the frames of a patch of {self.dit.patch}"
            )
        if self.pitch_classes < 33:
            raise ValueError(
                "pitch_low..pitch_high must span at least 32 notes: their picture is shrunk to 16 features"
            )
        return self


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
    sigma: float = Field(1.0, gt=0)  # simple: of the likelihood of standardised mels in Eq. (6); the LDM case learns it
    sigma_mixture: float = Field(0.25, gt=0)  # simple: sigma_m of Eq. (9)
    reconstruction: float = Field(1.0, ge=0)  # of mixture and sources
    mixture_from_sources: float = Field(0.0, ge=0)  # simple: log p(x_m | S), Eq. (6) itself, beside Section 4's terms
    embedding: float = Field(1.0, ge=0)  # simple: Eq. (9), the sum of source latents near the mixture's embedding
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
        foreign = self._foreign()
        for name in self.model_fields_set:
            if name in foreign:
                other = "simple" if self.case == "ldm" else "ldm"
                raise ValueError(
                    f"'{name}' is not read where case is '{self.case}'; remove it, or set model.case={other}"
                )
        return self

    @model_serializer(mode="wrap")
    def _show_the_own_case(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown: dict[str, Any] = handler(self)
        return {name: value for name, value in shown.items() if name not in self._foreign()}

    def _foreign(self) -> tuple[str, ...]:
        return ("ldm",) if self.case == "simple" else SIMPLE_ONLY
