"""Hyperparameters of CQTML: from a constant-Q transform to four stage lights, people's taste, and a generator tuned on it.

Three kinds of training share this section: the ``generator``, the ``reward`` that learns which of two outputs people prefer, and the
``policy``, a generator tuned on that reward. A config shows only what its kind reads. ``PairsConfig`` is the link between the first two:
it is no training, but makes what people compare. No torch import: ``launch.py --dry-run`` reads this.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config import ModelSection, Section

LIGHTS = 4
BINS = 84  # of the constant-Q transform, twelve an octave
FRAME_RATE = 22050 / 64  # of the transform and of the lights, in hertz
KINDS = {  # what each kind of training reads, beside ``system`` and ``kind``
    "generator": ("body", "head", "warm_start", "augment"),
    "reward": ("reward_model", "least_comparisons"),
    "policy": ("body", "head", "reward_model", "reward", "grpo"),
}


class Body(Section):
    """The network below the head; the defaults are vit_tiny_patch16_224's, and with 32 levels it counts 5,586,752 parameters."""

    name: Literal["vit", "cnn"] = "vit"  # cnn: the baseline, convolutions over time
    width: int = Field(192, gt=0)
    depth: int = Field(12, gt=0)
    heads: int = Field(3, gt=0)
    mlp_ratio: int = Field(4, gt=0)
    columns: int = Field(
        108, gt=0
    )  # patch columns that positions are learned for (5 s); another length interpolates them
    dropout: float = Field(0.0, ge=0, lt=1)
    pretrained: bool = False  # begin with timm's weights, from the weights folder's vit_tiny_patch16_224/
    eight_bit: bool = False  # AdamW whose states have 8 bits (bitsandbytes)

    @model_validator(mode="after")
    def _fits_together(self) -> Body:
        if self.name == "vit" and self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        if self.pretrained and (self.name, self.width, self.depth, self.heads) != ("vit", 192, 12, 3):
            raise ValueError("pretrained weights are of vit_tiny_patch16_224: name vit, width 192, depth 12, heads 3")
        return self


class Head(Section):
    """What is said of each light and patch column: a distribution over ``levels``, or of one continuous brightness."""

    name: Literal["levels", "continuous"] = "levels"
    levels: int = Field(32, ge=2, le=64)

    @property
    def outputs(self) -> int:
        return self.levels if self.name == "levels" else 1


class WarmStart(Section):
    """What the generator is first taught: three lights follow the onsets of a band each, the fourth the beat."""

    release: float = Field(0.15, gt=0)  # seconds in which a light falls to 1/e
    spread: float = Field(
        1.0, ge=0
    )  # of the target over neighbouring levels, in levels: what later exploration lives on
    locality: float = Field(0.0, ge=0)  # weight of what changes far from where music is replaced (needs data.partner)


class Augment(Section):
    """How far what is heard is varied in training; 0 and false: not at all."""

    gain: float = Field(0.7, ge=0)  # nepers, up and down: 6 dB
    semitones: int = Field(4, ge=0)  # up and down
    pieces: int = Field(
        4, gt=0
    )  # cut at random places and put together in another order: what is far away decides nothing


class RewardShape(Section):
    """Two encoders over time (width / 2, width, 2 width), lights that attend to music: 839,297 parameters at width 128."""

    width: int = Field(128, gt=0, multiple_of=8)
    heads: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> RewardShape:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


class Grpo(Section):
    """Group-relative policy optimisation (Shao et al. 2402.03300, Section 4.1)."""

    group: int = Field(8, ge=2)  # outputs drawn for each input
    temperature: float = Field(1.0, gt=0)  # of the draws, and in every log-probability
    clip: float = Field(0.2, gt=0, lt=1)
    kl: float = Field(0.02, ge=0)  # weight of the divergence from the start
    refresh: int = Field(4, gt=0)  # steps that the network which draws lags behind at most
    kl_alarm: float = Field(0.5, gt=0)  # nats a light and column: farther from the start, the alarm sounds
    diversity_alarm: float = Field(0.25, ge=0, lt=1)  # of the start's diversity: with less, the alarm sounds


class ModelConfig(ModelSection):
    """The ``model:`` section."""

    live: ClassVar[tuple[str, ...]] = ("warm_start", "augment", "grpo")
    runs: ClassVar[tuple[str, ...]] = ("reward",)

    system: Literal["cqtml"]
    kind: Literal["generator", "reward", "policy"] = "generator"
    body: Body = Body()
    head: Head = Head()
    warm_start: WarmStart = WarmStart()
    augment: Augment = Augment()
    reward_model: RewardShape = RewardShape()
    least_comparisons: int = Field(200, gt=0)  # to learn from: a reward is not trained on fewer
    reward: str | None = None  # policy: the run whose taste it is tuned on
    grpo: Grpo = Grpo()

    @property
    def part_folder(self) -> str:
        return f"{self.system}/{self.kind}"

    def data_problems(self, info: dict[str, Any]) -> list[str]:
        if self.kind != "reward":
            return []
        have = int(info["samples"]["train"])
        if have >= self.least_comparisons:
            return []
        pairs = int(info["pairs"]["train"])
        more = (
            f"; more pairs are drawn by: python jobs/generate.py {info['of']} --pairs N"
            if pairs < self.least_comparisons
            else ""
        )
        return [
            f"{have} comparisons are there to learn from and model.least_comparisons asks for {self.least_comparisons}; "
            f"{pairs} pairs of the training songs can be rated: python monitoring/compare.py {info['of']}{more}"
        ]

    @model_validator(mode="after")
    def _reads_what_its_kind_does(self) -> ModelConfig:
        every = {name for names in KINDS.values() for name in names}
        for name in sorted(every - set(KINDS[self.kind])):
            if name in self.model_fields_set:
                raise ValueError(f"'{name}' is not read where kind is '{self.kind}'; remove it")
        if self.kind == "policy" and self.reward is None:
            raise ValueError("a policy is tuned on a reward: set model.reward to a run, or to 'previous' in a chain")
        if self.kind == "policy" and self.head.name != "levels":
            raise ValueError("a policy needs a probability for each level: set model.head.name=levels")
        return self

    @model_serializer(mode="wrap")
    def _show_the_own_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown: dict[str, Any] = handler(self)
        every = {name for names in KINDS.values() for name in names}
        return {name: value for name, value in shown.items() if name not in every - set(KINDS[self.kind])}


class PairsConfig(Section):
    """The ``pairs:`` section: pairs of outputs that a run draws for people, or for a scripted judge, to compare.

    ``of``: a generator's run, or its config's name: in a chain its run there. ``raters``: with ``people`` a chain stops behind the pairs.
    """

    of: str
    count: int = Field(1000, gt=0)  # over all splits, each with its share
    temperatures: tuple[float, ...] = Field((0.25, 0.5, 1.0, 2.0), min_length=1)  # each side draws one of them
    seed: int = Field(0, ge=0)
    raters: Literal["scripted_judge", "people"] = "scripted_judge"

    @model_validator(mode="after")
    def _temperatures_are_positive(self) -> PairsConfig:
        if min(self.temperatures) <= 0:
            raise ValueError("every temperature must be greater than 0")
        return self
