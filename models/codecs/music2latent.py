"""``music2latent``: the consistency autoencoder of Pasini, Lattner and Fazekas (2408.06500), 64 channels at 10.8 Hz.

From the package ``music2latent`` only the network and its transforms are used: its own loader asks the network even for a local file,
unpickles, and passes over weights that do not fit.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.blocks.precision import without_autocast
from models.codecs.base import Codec, flattened
from models.codecs.tensors import freeze, load_exactly, read_tensors
from models.codecs.weights import Weights, checked_weights
from pipeline.errors import UserError

STFT_HOP = 512
FRAMES = 8  # STFT frames to a latent frame
LEAD_IN = 3 * STFT_HOP  # samples that the first STFT window needs beyond its hop
NOISE_SEED = 20240806  # decoding starts from noise, the same for every waveform: equal latents give equal sound


class Music2Latent(Codec):
    """(..., n) -> (..., 64, L), L = (n - 1536) // 4096; ``decode`` gives 4096 L + 1536 samples.

    A segment is encoded as a whole, whatever its length: pieces would leave seams.
    """

    name = "music2latent"
    differentiable = False

    def __init__(self, weights: Weights, device: str) -> None:
        from music2latent.hparams import bottleneck_channels, sample_rate
        from music2latent.models import UNet

        super().__init__(sample_rate, STFT_HOP * FRAMES, bottleneck_channels, device)
        path = weights.path(weights.files[0].path)
        checkpoint = read_tensors(path)
        if not isinstance(checkpoint, dict) or "gen_state_dict" not in checkpoint:
            raise UserError(f"{path} is no checkpoint of music2latent: it holds no 'gen_state_dict'.")
        self.model = UNet()
        load_exactly(self.model, checkpoint["gen_state_dict"], path)
        freeze(self.model, self.device)
        self.licence, self.weights_hash = weights.licence, weights.identity

    def latent_shape(self, samples: int) -> tuple[int, ...]:
        return self.channels, max(0, samples - LEAD_IN) // self.hop

    @torch.no_grad()
    @without_autocast
    def encode(self, wave: Tensor) -> Tensor:
        """Raises ValueError for less than 1536 + 4096 samples."""
        from music2latent.audio import to_representation_encoder
        from music2latent.hparams_inference import sigma_rescale

        frames = self.latent_shape(wave.shape[-1])[1]
        if not frames:
            raise ValueError(f"{wave.shape[-1]} samples are too short for music2latent; it needs {LEAD_IN + self.hop}")
        whole = self._taken(wave[..., : frames * self.hop + LEAD_IN])
        return flattened(lambda flat: self.model.encoder(to_representation_encoder(flat)) / sigma_rescale, whole, 1)

    @torch.no_grad()
    @without_autocast
    def decode(self, latent: Tensor) -> Tensor:
        from music2latent.audio import to_waveform
        from music2latent.hparams import data_channels, sigma_max
        from music2latent.hparams_inference import sigma_rescale
        from music2latent.utils import reverse_diffusion

        generator = torch.Generator().manual_seed(NOISE_SEED)
        shape = (1, data_channels, 2 * STFT_HOP, FRAMES * latent.shape[-1])
        noise = sigma_max * torch.randn(shape, generator=generator).to(self.device)

        def rows(flat: Tensor) -> Tensor:
            start = noise.expand(len(flat), -1, -1, -1)
            wave: Tensor = to_waveform(reverse_diffusion(self.model, start, 1, latents=flat * sigma_rescale))
            return self._taken(wave)

        return flattened(rows, self._taken(latent), 2)


def load(weights_folder: Path | None, device: str, sample_rate: int) -> Music2Latent:
    return Music2Latent(checked_weights("music2latent", weights_folder), device)
