"""The mixing engineer: encoders that listen, a transformer that decides, heads that turn the knobs. Diff-MST, Section 3.1.

Shapes: B samples, N tracks, n samples of a waveform, D width; frames L and bins F of a spectrogram; P knobs of a section.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import fourier
from models.blocks.console.layout import Layout, Section
from models.blocks.console.settings import Settings, from_turns
from models.diff_mst.config import EncoderShape, ModelConfig
from models.features import OCTAVES_HIGHEST, OCTAVES_LOWEST, octave_bands

FEW = 8  # channels
COMPRESSION = 0.3  # exponent of the magnitudes
EDGE = 0.03  # a knob that starts at its end starts so far from it, where a sigmoid still moves
SOUNDING = 1e-4  # of the loudest frame's power, -40 dB: what counts as a frame that sounds
FAINT = 1e-8  # power below which nothing is told apart
TILT = 2.0  # nats by which a voice's spectrum falls in an octave, about
SCALE = 0.3  # of the cosine coefficients: about one, where takes differ
CALM = 0.3  # of the usual spread of the heads' first weights


class ConvBlock(nn.Module):
    """Two convolutions of 3 x 3 with normalisation and ReLU, then the mean over ``pool`` x ``pool``."""

    def __init__(self, inputs: int, outputs: int, groups: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        # Batch normalisation, CNN14's, would make a step depend on which samples share a process. As many parameters.
        self.norm1, self.norm2 = nn.GroupNorm(groups, outputs), nn.GroupNorm(groups, outputs)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        for convolve, normalise in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = convolve(x.contiguous(memory_format=torch.channels_last))
            # a norm over few channels takes three times as long where those lie next to one another
            x = F.relu(normalise(x.contiguous() if x.shape[1] < FEW else x))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


class SpectrogramEncoder(nn.Module):
    """Waveforms (b, n) -> embeddings (b, D): CNN14's body and one linear layer; where the config says so, the long-term spectrum beside."""

    window: Tensor

    def __init__(self, shape: EncoderShape, width: int, sample_rate: int) -> None:
        super().__init__()
        self.shape = shape
        last = len(shape.channels) - 1
        inputs = (1, *shape.channels)
        self.blocks = nn.ModuleList(
            ConvBlock(inputs[i], outputs, shape.groups, 1 if i == last else 2)
            for i, outputs in enumerate(shape.channels)
        )
        self.out = nn.Linear(shape.channels[-1], width)
        self.register_buffer("window", torch.hann_window(shape.window), persistent=False)
        self.long_term = LongTermSpectrum(shape, width, sample_rate) if shape.bands else None

    def forward(self, wave: Tensor) -> Tensor:
        if wave.shape[-1] < self.shape.shortest:
            raise ValueError(f"{wave.shape[-1]} samples are too short for an encoder that needs {self.shape.shortest}")
        with torch.autocast(wave.device.type, enabled=False):
            frames = fourier.windowed(fourier.beyond(wave.float(), self.shape.window // 2), self.window, self.shape.hop)
            power = fourier.powers(frames)
            picture = (power + 1e-8) ** (COMPRESSION / 2)
        beside = 0.0 if self.long_term is None else self.long_term(power)
        x = picture[..., None].movedim(
            -1, 1
        )  # (b, 1, L, F), channels last in memory, and so it stays: a fifth faster on a CPU
        for block in self.blocks:
            x = block(x)
        x = x.mean(-1)
        return self.out(x.amax(-1) + x.mean(-1)) + beside


class LongTermSpectrum(nn.Module):
    """Power spectra (b, L, F) -> (b, D). CNN14 ends in a mean over frequency, so where in the spectrum something stands is hardly heard;
    an equaliser is set by just that.

    Two spectra in bands of equal width in octaves, the mean of the logarithms of all frames that sound and the logarithm of their mean,
    as cosine coefficients: those are hardly correlated, so they are learned from far sooner than bands. One linear layer; the
    transformer bends. (A hidden layer of GELUs died within 200 steps.)
    """

    filters: Tensor
    cosines: Tensor
    tilt: Tensor

    def __init__(self, shape: EncoderShape, width: int, sample_rate: int) -> None:
        super().__init__()
        count = shape.bands
        self.register_buffer("filters", octave_bands(count, shape.window, sample_rate), persistent=False)
        angles = math.pi / count * torch.arange(count)[:, None] * (torch.arange(count) + 0.5)
        self.register_buffer("cosines", SCALE * (2 / count) ** 0.5 * angles.cos(), persistent=False)
        octaves = torch.linspace(0, 1, count) * math.log2(OCTAVES_HIGHEST / OCTAVES_LOWEST)
        self.register_buffer("tilt", -TILT * (octaves - octaves.mean()) - 2 * TILT, persistent=False)
        self.out = nn.Linear(2 * count, width)

    def forward(self, power: Tensor) -> Tensor:
        with torch.autocast(power.device.type, enabled=False):
            bands = power @ self.filters  # (b, L, bands)
            loud = bands.sum(-1, keepdim=True)
            sounding = (loud > SOUNDING * loud.amax(1, keepdim=True)).to(bands)
            logs = (bands.clamp(min=FAINT).log() * sounding).sum(1) / sounding.sum(1).clamp(min=1)
            spectra = torch.stack([logs, bands.mean(1).clamp(min=FAINT).log()], dim=1)  # (b, 2, bands)
            found = (spectra - self.tilt) @ self.cosines.T
        return self.out(found.flatten(1))


class Head(nn.Module):
    """A token (..., D) -> positions 0..1 of a section's knobs (..., P); at first near where they start, whatever is heard."""

    def __init__(self, width: int, section: Section) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(section))
        with torch.no_grad():
            starts = [min(max(knob.to_turn(knob.start), EDGE), 1 - EDGE) for knob in section]
            self.linear.bias.copy_(torch.tensor([math.log(turn / (1 - turn)) for turn in starts]))
            self.linear.weight.mul_(CALM)

    def forward(self, token: Tensor) -> Tensor:
        return self.linear(token).float().sigmoid()


class MixingEngineer(nn.Module):
    """From what is heard to how the knobs are turned; ``layout`` says which there are."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__()
        shape, self.layout = config.controller, layout
        self.refers = config.reference != "none"
        self.track_encoder = SpectrogramEncoder(config.encoder, shape.width, layout.sample_rate)
        self.track_kind = nn.Parameter(torch.randn(shape.width) * 0.1)
        if self.refers:
            self.reference_encoder = SpectrogramEncoder(config.encoder, shape.width, layout.sample_rate)
            self.left_kind, self.right_kind = (nn.Parameter(torch.randn(shape.width) * 0.1) for _ in range(2))
        else:
            self.style = nn.Parameter(torch.randn(shape.width) * 0.1)
        self.bus_kind = nn.Parameter(torch.randn(shape.width) * 0.1)
        if layout.master:
            self.master_kind = nn.Parameter(torch.randn(shape.width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, shape.feed_forward, dropout=0.0, batch_first=True, norm_first=shape.norm_first
        )
        self.transformer = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({name: Head(shape.width, section) for name, section in layout.sections.items()})

    def blocks(self) -> Iterator[nn.Module]:
        """Of the encoders: the transformer sees a token a track, and holds next to nothing."""
        encoders = [self.track_encoder, *([self.reference_encoder] if self.refers else [])]
        return (block for encoder in encoders for block in encoder.blocks)

    def forward(self, tracks: Tensor, reference: Tensor | None = None) -> dict[str, Tensor]:
        """Tracks (B, N, n), the reference (B, 2, m) -> positions 0..1 of the knobs by section: (B, N, P), (B, 1, P), (B, 1, P)."""
        batch, count = tracks.shape[:2]
        heard = self.track_encoder(tracks.flatten(0, 1)).unflatten(0, (batch, count))
        tokens = [heard + self.track_kind]
        if self.refers:
            if reference is None:
                raise ValueError("this engineer mixes after a reference, and none was given")
            sides = self.reference_encoder(reference.flatten(0, 1)).unflatten(0, (batch, 2))
            tokens.append(sides + torch.stack([self.left_kind, self.right_kind]))
        else:
            tokens.append(self.style.expand(batch, 1, -1))
        tokens.append(self.bus_kind.expand(batch, 1, -1))
        if self.layout.master:
            tokens.append(self.master_kind.expand(batch, 1, -1))
        seen = self.transformer(torch.cat(tokens, dim=1))
        after = {"track": seen[:, :count], "master": seen[:, -1:]}
        after["bus"] = seen[:, -2:-1] if self.layout.master else seen[:, -1:]
        return {name: head(after[name]) for name, head in self.heads.items()}

    def settings(self, tracks: Tensor, reference: Tensor | None = None) -> Settings:
        """The same as values in each knob's unit, (B, S, 1, P)."""
        turns = self(tracks, reference)
        return {name: from_turns(turns[name][:, :, None], section) for name, section in self.layout.sections.items()}
