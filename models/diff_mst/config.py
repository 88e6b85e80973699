"""Hyperparameters of Diff-MST, arXiv 2407.08889, and of what is made of it for one voice and one engineer.

``reference`` says what is shown of the wanted sound, and so what is compared with what:

    none    nothing: the style is learned from the pairs, and the mix is compared with the engineer's
    same    another section of the same mixed song; the mix is compared with the engineer's of this section
    other   a section of another mixed song; only audio features are compared, with those of the reference
    made    one half of a multitrack through the console with drawn settings, the other half is to become like it (Section 3.3)

No torch import: ``launch.py --dry-run`` reads this.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from models.blocks.console.layout import Switches
from pipeline.config import ModelSection, Section


class EncoderShape(Section):
    """CNN14 (Kong et al. 2020) over the spectrogram |X|^0.3; the defaults are the paper's. Every block but the last halves the picture."""

    channels: tuple[int, ...] = Field((64, 128, 256, 512, 1024, 2048), min_length=1)
    window: int = Field(2048, gt=0)  # samples
    hop: int = Field(512, gt=0)
    groups: int = Field(8, gt=0)  # of the group normalisation, which stands for batch normalisation
    pretrained: str | None = None  # a folder in the weights folder: CNN14's weights, or an encoder's of a run
    bands: int = Field(0, ge=0)  # of the long-term spectrum that is heard, too; 0: none, as in the paper

    @model_validator(mode="after")
    def _groups_divide(self) -> EncoderShape:
        if wrong := [c for c in self.channels if c % self.groups]:
            raise ValueError(f"groups {self.groups} does not divide {wrong[0]} channels")
        return self

    @property
    def shortest(self) -> int:
        """Samples that leave one frame after all halvings."""
        return self.hop * 2 ** (len(self.channels) - 1)


class ControllerShape(Section):
    """A transformer over one token a track, the style's and the busses'; the defaults are the paper's."""

    width: int = Field(512, gt=0)
    layers: int = Field(12, gt=0)
    heads: int = Field(8, gt=0)
    feed_forward: int = Field(2048, gt=0)
    norm_first: bool = False  # normalised before each layer, not after: what was heard reaches the heads undiminished

    @model_validator(mode="after")
    def _heads_divide(self) -> ControllerShape:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide the width {self.width}")
        return self


class Weights(Section):
    """Of the loss: the multi-resolution STFT, and the audio features by the paper's weights (Section 3.4); ``octaves`` is ours: spectra in
    bands of equal width in octaves (``models.losses.multi_resolution_octaves``)."""

    stft: float = Field(1.0, ge=0)
    octaves: float = Field(0.0, ge=0)
    rms: float = Field(0.1, ge=0)
    crest: float = Field(0.001, ge=0)
    width: float = Field(1.0, ge=0)
    imbalance: float = Field(1.0, ge=0)
    bark: float = Field(0.1, ge=0)


class ModelConfig(ModelSection):
    live: ClassVar[tuple[str, ...]] = ("weights",)

    system: Literal["diff_mst"]
    reference: Literal["none", "same", "other", "made"]
    console: Switches = Switches()
    encoder: EncoderShape = EncoderShape()
    controller: ControllerShape = ControllerShape()
    weights: Weights = Weights()

    crop: int | None = Field(
        None, gt=0
    )  # samples of a segment that a step mixes, at a drawn place; None: all. It is heard whole
    lead_in: float = Field(0.0, ge=0)  # seconds that are rendered and not judged: what reverb and compressor remember
    track_loudness: float | None = None  # LUFS that every track is brought to before the console; None: as it is
    reference_loudness: float | None = None  # LUFS of the reference

    @model_validator(mode="after")
    def _something_is_compared(self) -> ModelConfig:
        if self.reference == "other" and (aligned := [n for n in ("stft", "octaves") if getattr(self.weights, n)]):
            name = aligned[0]
            raise ValueError(
                f"a reference of another song is not aligned with the mix, which {name} needs: set model.weights.{name}=0"
            )
        if not any(self.weights.model_dump().values()):
            raise ValueError("every weight is 0: there is nothing to minimise")
        return self
