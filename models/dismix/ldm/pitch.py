"""What is played: the transcription of a queried source, and the pitch latent made of its bits (Section 5.2, Eqs. (3), (4)).

Shapes: K queried sources, P pitch classes (the last is silence), T mel frames, L = T / 4 latent frames, W = 16 latent features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dismix.binarisation import binarise
from models.dismix.config import VaeShape
from models.dismix.ldm.encoders import FEATURES
from models.dismix.ldm.vae import LATENT, decoder, encoder

LAST_KERNEL = 5


class FrequencyMean(nn.Conv2d):
    """A 3x3 convolution and the mean over frequency behind it, in one: 129 pictures would be made only to be averaged.

    Both are linear. Over all places of the kernel a column of it meets every column of the picture but the one that slides out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        """(K, C, T, F) -> (K, P, T)."""
        total = picture.sum(-1)
        met = torch.cat(
            [total - picture[..., -1], total, total - picture[..., 0]], dim=1
        )  # columns -1, 0, 1 of the kernel
        weight = self.weight.permute(0, 3, 1, 2).flatten(1, 2)
        return F.conv1d(met / picture.shape[-1], weight, self.bias, padding=1)


class Transcriber(nn.Module):
    """A decoder of the VAE family with a channel for each pitch class, averaged over mel frequency: logits frame by frame.

    Convolutions do not know where in frequency they are, and an average over frequency forgets it; but pitch is where. So each channel
    of the embedding has a cosine over the features added to it, which costs no parameter.
    """

    place: Tensor  # (8, 1, W)

    def __init__(self, shape: VaeShape, classes: int) -> None:
        super().__init__()
        self.layers = decoder(shape, LATENT, classes)
        self.layers.conv_out = FrequencyMean(shape.channels * shape.multipliers[0], classes)
        # One class in P is on: start from that prior, or the first hundreds of steps only learn that bits are rare.
        nn.init.constant_(self.layers.conv_out.bias, -math.log(classes - 1))  # type: ignore[arg-type]
        turns = (torch.arange(FEATURES) + 0.5) / FEATURES
        place = torch.cos(math.pi * torch.arange(1, LATENT + 1)[:, None] * turns)
        self.register_buffer("place", place[:, None], persistent=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """(K, 8, L, W) -> (K, T, P) logits."""
        return self.layers(embedding + self.place).transpose(1, 2)


class Shrink(nn.Conv2d):
    """A 5x5 convolution whose strides bring L' frames to half of them and any number of pitch features to W."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, LAST_KERNEL)

    def forward(self, picture: Tensor) -> Tensor:
        """(K, C, 2 L, V) -> (K, C, L, W), V at least W."""
        size = picture.shape[-2:]
        wanted = (size[0] // 2, FEATURES)
        strides = [s // w for s, w in zip(size, wanted, strict=True)]
        # The windows that the strides leave are centred on the picture: padded where they reach out, cut where they do not
        missing = [(w - 1) * t + LAST_KERNEL - s for s, w, t in zip(size, wanted, strides, strict=True)]
        pad = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]
        return F.conv2d(F.pad(picture, pad), self.weight, self.bias, (strides[0], strides[1]))


class Translator(nn.Module):
    """f_phi_nu: pitch bits as a picture of time and pitch, through an encoder of the VAE family."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        self.layers = encoder(shape, 1, LATENT)
        # Pitch has more rows than a mel has bands: the second downsampling takes it to W, whatever P is
        middle = self.layers.down_blocks[1]  # type: ignore[index]
        middle.downsamplers = nn.ModuleList([Shrink(shape.channels * shape.multipliers[1])])  # type: ignore[union-attr]

    def forward(self, bits: Tensor) -> Tensor:
        """(K, 1, T, P) -> nu (K, 8, L, W)."""
        return self.layers(bits)


class PitchEncoder(nn.Module):
    """E_phi_nu: embedding -> logits -> bits -> pitch latent; ``binarised`` false is the ablation of Eq. (4)."""

    def __init__(self, transcriber: nn.Module, translator: nn.Module, binarised: bool) -> None:
        super().__init__()
        self.transcriber, self.translator = transcriber, translator
        self.binarised = binarised

    def forward(self, embedding: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
        """(K, 8, L, W) and thresholds (K, T, P) or one number -> logits (K, T, P) and nu (K, 8, L, W)."""
        logits = self.transcriber(embedding)
        return logits, self.latent(logits, threshold)

    def latent(self, logits: Tensor, threshold: Tensor | float) -> Tensor:
        """nu of logits (K, T, P); without the layer of Eq. (4) the logits themselves go on."""
        if not self.binarised:
            return self.translator(logits[:, None])
        return self.translator(binarise(torch.sigmoid(logits), threshold)[:, None])
