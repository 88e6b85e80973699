"""What the codec alone costs: the held-out recordings through it and back, with no model between.

Shapes: B samples, S stems, n audio samples.
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.cd4mt import data as facts
from models.cd4mt.coherence import audible
from models.cd4mt.showing import to_audio
from models.cd4mt.statistics import Comparison, Figures, spectra_of_audio
from models.cd4mt.train_module import TrainModule
from pipeline.manifest import MANIFEST, Manifest, read_manifest
from pipeline.samples import SplitReader

FULL_SCALE = 32768.0  # of int16
SAMPLES = 8  # at most
BATCH = 16
NEPER = 20 / math.log(10)  # decibels


def codec_cost(module: TrainModule, data_folder: Path, split: str) -> Figures:
    """Where the shards that were encoded lie beside the latents: the distance between the recordings and what comes back, how far their
    log-mels are apart in the mean, and of waveform codecs the signal-to-noise ratio (a vocoder makes phases of its own)."""
    originals = recordings(module, data_folder, split, SAMPLES)
    if not len(originals):
        return {}
    latents = _by_number(read_manifest(data_folder), split, facts.FIELD, len(originals))
    decoded = torch.cat([to_audio(module, module.clean({facts.FIELD: part})).cpu() for part in latents.split(BATCH)])
    originals = originals[..., : decoded.shape[-1]]
    rate = int(module.data["sample_rate"])
    before, after = spectra_of_audio(originals, rate), spectra_of_audio(decoded, rate)
    figures = Comparison(module.stems, before).one("codec", after)
    figures["codec_log_mel_error_db"] = NEPER * float((before.log_mels - after.log_mels).abs().mean())
    if not module.data["latent"]["fields"][facts.FIELD]["shape"][3:]:
        noise = (originals - decoded).square().sum(-1).clamp_min(1e-12)
        ratios = 10 * (originals.square().sum(-1) / noise).log10()
        figures["codec_median_snr_db"] = float(ratios[audible(originals)].median())
    return figures


def recordings(module: TrainModule, data_folder: Path, split: str, most: int) -> Tensor:
    """(B, S, n) of the shards that were encoded, full scale 1, at most ``most``; nothing where they do not lie beside the latents."""
    folder = data_folder.with_name(data_folder.name.removesuffix(f"-{module.data['latent']['codec']}"))
    if folder == data_folder or not (folder / MANIFEST).is_file():
        return torch.zeros(0)
    manifest = read_manifest(folder)
    if manifest.identity != module.data["latent"]["source"]:
        return torch.zeros(0)
    return _by_number(manifest, split, "stems", min(most, manifest.samples(split))) / FULL_SCALE


def _by_number(manifest: Manifest, split: str, field: str, count: int) -> Tensor:
    """(count, ...) float32 in the order of the shards, which the latents share with what was encoded; a pass's order may differ."""
    with closing(SplitReader(manifest, split)) as reader:
        return torch.stack([torch.from_numpy(np.asarray(reader.sample(i)[field], np.float32)) for i in range(count)])
