"""Hyperparameters of CD4MT: a U-Net over the latents of four stems, and the objective it is trained by.

One network and one preconditioning serve every objective, so a diffusion run can begin any of the others; the sizes of a schedule stand in
a section of their own, and a config shows only the section of its objective. No torch import: ``launch.py --dry-run`` reads this.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config import ModelSection, Section

OBJECTIVES = ("edm", "cm", "ict", "ect", "scm")


class UnetShape(Section):
    """The U-Net of Dhariwal and Nichol (2105.05233): residual blocks, attention where the axes are shrunk by ``attention``."""

    channels: int = Field(64, ge=4, multiple_of=2)
    multipliers: tuple[int, ...] = Field(
        (1, 2, 4), min_length=1
    )  # of the channels, level by level; each halves the axes
    res_blocks: int = Field(1, gt=0)  # a level
    head_channels: int = Field(16, gt=0)
    attention: tuple[int, ...] = (4, 2)
    dropout: float = Field(0.1, ge=0, lt=1)
    shortcut: bool = False  # the input, channel by channel, times what the noise level says, is added to the output
    norm: Literal["group", "non_scaling"] = (
        "group"  # non_scaling: without the learned scale that gathers outliers (2502.01441)
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> UnetShape:
        for multiplier in self.multipliers:
            if self.channels * multiplier % self.head_channels:
                raise ValueError(
                    f"head_channels {self.head_channels} does not divide {self.channels * multiplier} channels"
                )
        return self


class LogNormal(Section):
    """ln(sigma) of what is trained on is N(mean, deviation^2)."""

    mean: float
    deviation: float = Field(gt=0)


class Edm(Section):
    """Diffusion (Karras et al. 2206.00364)."""

    noise: LogNormal = LogNormal(mean=-1.2, deviation=1.2)


class Cm(Section):
    """Consistency training as it was first (Song et al. 2303.01469, Appendix C): more levels and a slower teacher as it goes on."""

    steps: int = Field(800_000, gt=0)  # K, over which the schedule runs
    first: int = Field(2, ge=2)  # s_0
    last: int = Field(150, ge=2)  # s_1
    decay: float = Field(0.95, gt=0, lt=1)  # mu_0


class Ict(Section):
    """Improved consistency training (Song and Dhariwal 2310.14189): levels double, the teacher is the student, levels are log-normal."""

    steps: int = Field(400_000, gt=0)  # K
    first: int = Field(10, ge=2)  # s_0
    last: int = Field(1280, ge=2)  # s_1
    noise: LogNormal = LogNormal(mean=-1.1, deviation=2.0)

    @model_validator(mode="after")
    def _levels_grow(self) -> Ict:
        if self.last < self.first:
            raise ValueError(f"last {self.last} is below first {self.first}")
        return self


class Ect(Section):
    """Easy consistency tuning (Geng et al. 2406.14548): from diffusion, r = 0, to consistency, r close to t.

    It tunes a diffusion run (``init_from``), or makes the first ``diffusion_steps`` of its own with r = 0.
    """

    diffusion_steps: int = Field(0, ge=0)
    stage_steps: int = Field(50_000, gt=0)
    stages: int = Field(8, gt=0)  # the last one is kept
    q: float = Field(2.0, gt=1)
    k: float = Field(8.0, ge=0)
    weight: Literal["inverse", "snr"] = "inverse"  # 1 / (t - r), or that times t and diffusion's own weight
    noise: LogNormal = LogNormal(mean=-1.1, deviation=2.0)


class Scm(Section):
    """Continuous-time consistency training (Lu and Song 2410.11081)."""

    warmup_steps: int = Field(10_000, ge=0)  # H, over which the tangent's second half comes in
    tangent: float = Field(0.1, gt=0)  # c of its normalisation
    noise: LogNormal = LogNormal(mean=-1.0, deviation=1.4)


class ModelConfig(ModelSection):
    """The ``model:`` section."""

    live: ClassVar[tuple[str, ...]] = (
        *OBJECTIVES,
        "distance",
        "distance_scale",
        "coupling_group",
        "middle",
    )  # what --resume may change

    system: Literal["cd4mt"]
    objective: Literal["edm", "cm", "ict", "ect", "scm"]
    layout: Literal["time", "map"] = "time"  # map: time is folded into a square, as the ancestor had it
    frames: int | None = Field(None, gt=0)  # of a training sample, at a random place; None: all that the data has
    unet: UnetShape = UnetShape()

    # Whether each channel of a stem gets the deviation sigma_data, or all of them one factor, so that what is small stays small
    standardise: Literal["channel", "stem"] = "channel"
    sigma_data: float = Field(0.5, gt=0)  # deviation that standardised latents are scaled to
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)
    middle: float = Field(
        0.821, gt=0
    )  # sigma of the second of two steps of a consistency model (2310.14189, for images of 32 x 32)
    noise_level: Literal["log_sigma", "angle"] = "log_sigma"  # what tells the network the noise; sCM needs the angle

    distance: Literal["pseudo_huber", "cauchy", "l2"] = "pseudo_huber"  # of cm, ict and ect
    distance_scale: float | None = Field(None, gt=0)  # its c; None: 0.00054 sqrt(d), d the numbers in a sample

    coupling_group: int | None = Field(None, ge=2)  # consecutive samples within which noise is assigned to data

    edm: Edm = Edm()
    cm: Cm = Cm()
    ict: Ict = Ict()
    ect: Ect = Ect()
    scm: Scm = Scm()

    @model_validator(mode="before")
    @classmethod
    def _null_takes_a_section_back(cls, tree: Any) -> Any:
        """What a config's ``base`` says of its own objective is none of this one's."""
        if not isinstance(tree, dict):
            return tree
        return {name: value for name, value in tree.items() if name not in OBJECTIVES or value is not None}

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}")
        if not self.sigma_min < self.middle < self.sigma_max:
            raise ValueError(f"middle {self.middle} is not between sigma_min and sigma_max")
        if self.objective == "scm" and self.noise_level != "angle":
            raise ValueError(
                "sCM differentiates by time, and log_sigma has no bounded derivative: set model.noise_level=angle"
            )
        for name in OBJECTIVES:
            if name != self.objective and name in self.model_fields_set:
                raise ValueError(
                    f"'{name}' is not read where objective is '{self.objective}'; remove it, or set model.objective={name}"
                )
        return self

    @model_serializer(mode="wrap")
    def _show_the_own_objective(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown: dict[str, Any] = handler(self)
        return {name: value for name, value in shown.items() if name not in OBJECTIVES or name == self.objective}
