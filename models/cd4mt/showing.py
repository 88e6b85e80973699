"""What one looks at and listens to: stems as waveforms and spectrograms, side by side, and as WAVs that keep their balance.

Shapes: B samples, S stems, C latent channels, L frames, n audio samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.cd4mt import data as facts
from models.cd4mt.statistics import mel_spec
from models.cd4mt.train_module import TrainModule
from models.codecs import codec_of
from models.codecs.base import MelCodec
from models.codecs.meldct import MelDct
from models.features import log_mel, loudest, waveform
from models.showing import Panel, write_picture, write_wave, write_waveforms
from pipeline.train_module import Batch

BANDS = 64  # of a picture
LOUDEST = 0.99  # of full scale


@torch.no_grad()
def to_audio(module: TrainModule, latents: Tensor, iterations: int | None = None) -> Tensor:
    """(B, S, C, L) of deviation sigma_data -> (B, S, n), by the codec that the data was encoded with.

    A log-mel that is a little too high is a bang in the waveform, so it ends where a recording would. ``iterations``: of Griffin-Lim,
    where that is how the codec makes a waveform; None: as many as sound best.
    """
    codec = codec_of(module.data, module.latent_mean.device.type)
    stored = facts.as_stored(module.scale.invert(latents), module.data)
    if not isinstance(codec, MelCodec):
        return codec.decode(stored)
    mels = codec.decode_mel(stored).clamp_max(loudest(codec.mel))
    if iterations is not None and isinstance(codec, MelDct):
        return waveform(mels, codec.mel, iterations)
    return codec.vocode(mels)


def write_stems(
    folder: Path, waves: Mapping[str, Tensor], sample_rate: int, only: Sequence[str] | None = None
) -> list[Path]:
    """mix.wav, the sum of ``waves`` (n) each, and NAME.wav of each or of ``only``; one gain for all where one would clip."""
    mix = torch.stack([wave.float().cpu() for wave in waves.values()]).sum(0)
    loudest = max(float(wave.abs().max()) for wave in (mix, *waves.values()))
    gain = min(1.0, LOUDEST / loudest) if loudest else 1.0
    shown = waves if only is None else {name: waves[name] for name in only}
    named = {"mix": mix} | dict(shown)
    return [write_wave(folder / f"{name}.wav", gain * wave, sample_rate) for name, wave in named.items()]


def write_comparison(
    folder: Path, heading: str, columns: Mapping[str, Tensor], names: Sequence[str], sample_rate: int
) -> list[Path]:
    """waveforms.png and spectrograms.png: a row for each stem, a column for each of ``columns`` (S, n)."""
    waves = [(name, [(title, wave[i]) for title, wave in columns.items()]) for i, name in enumerate(names)]
    spec = mel_spec(sample_rate, BANDS)
    mels = [(name, [Panel(title, log_mel(wave.float().cpu(), spec)) for title, wave in row]) for name, row in waves]
    return [
        write_waveforms(folder / "waveforms.png", heading, waves, sample_rate),
        write_picture(folder / "spectrograms.png", heading, mels, spec),
    ]


def show_draw(module: TrainModule, batch: Batch, folder: Path, step: int) -> None:
    """One sample of the data through the codec beside one draw: pictures of each stem, and the draw's audio."""
    first = {name: value[:1] for name, value in batch.items()}
    latents = facts.crop(module.clean(first), module.model_config.frames, module.random, "shown", first["position"])
    data = to_audio(module, latents)[0]
    drawn = to_audio(module, module.draw(batch["position"][:1], latents.shape[-1]))[0]
    rate = int(module.data["sample_rate"])
    write_comparison(folder, f"CD4MT after {step} steps", {"data": data, "drawn": drawn}, module.stems, rate)
    write_stems(folder, dict(zip(module.stems, drawn, strict=True)), rate)
