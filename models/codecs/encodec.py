"""``encodec``: the 24 kHz EnCodec of Défossez et al. (2210.13438), without its quantiser: 128 channels, 75 frames a second.

The latents are what the encoder gives before quantisation, so that the decoder can be driven by, and pass gradients to, a model's
continuous output. The weights are those that the package ``encodec`` names, ``encodec_24khz-<first digits of their sha256>.th``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.blocks.precision import without_autocast
from models.codecs.base import Codec, flattened
from models.codecs.tensors import freeze, load_exactly, read_tensors
from models.codecs.weights import Weights, checked_weights
from pipeline.errors import UserError


class Encodec(Codec):
    """(..., n) <-> (..., 128, L), L = ceil(n / 320); ``decode`` gives 320 L samples and passes gradients to the latent."""

    name = "encodec"
    differentiable = True

    def __init__(self, weights: Weights | None, device: str) -> None:
        """``weights`` None: as the networks are drawn, to be looked at and counted."""
        from encodec import EncodecModel

        model = EncodecModel.encodec_model_24khz(pretrained=False)
        self.licence = "none: random numbers"
        if weights is not None:
            path = weights.path(weights.files[0].path)
            check_name(path, weights.files[0].sha256)
            load_exactly(model, read_tensors(path), path)
            self.licence, self.weights_hash = weights.licence, weights.identity
        super().__init__(model.sample_rate, model.encoder.hop_length, model.encoder.dimension, device)
        freeze(model, self.device)
        self.encoder, self.decoder = model.encoder, model.decoder
        for part in self.decoder.modules():
            if isinstance(part, nn.LSTM):
                part.train()  # cuDNN has no backward in evaluation mode; without dropout both modes compute the same

    def latent_shape(self, samples: int) -> tuple[int, ...]:
        return self.channels, -(-samples // self.hop)

    @torch.no_grad()
    @without_autocast
    def encode(self, wave: Tensor) -> Tensor:
        return flattened(lambda flat: self.encoder(flat[:, None]), self._taken(wave), 1)

    @without_autocast
    def decode(self, latent: Tensor) -> Tensor:
        return flattened(lambda flat: self.decoder(flat)[:, 0], self._taken(latent), 2)


def check_name(path: Path, sha256: str) -> None:
    """The publisher's names end in the first digits of the content's sha256; UserError where they do not agree."""
    claimed = path.stem.rpartition("-")[2]
    if not sha256.startswith(claimed):
        raise UserError(f"{path} has the sha256 {sha256[:8]}..., its name says {claimed}; fetch it again.")


def as_drawn(device: str) -> Encodec:
    return Encodec(None, device)


def load(weights_folder: Path | None, device: str, sample_rate: int) -> Encodec:
    return Encodec(checked_weights("encodec", weights_folder), device)
