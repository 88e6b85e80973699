"""Codecs: from waveforms to latents and back, one contract for all (``base``). ``load_codec`` is the door.

    mdct          waveform  44.1 or 24 kHz  analytic, no weights                          the demos of CD4MT and Jingle_D
    meldct        log-mel   16 kHz          analytic, no weights                          the demo of DisMix
    audioldm2     log-mel   16 kHz          VAE and HiFi-GAN vocoder                      DisMix
    encodec       waveform  24 kHz          latents before the quantiser                  Jingle_D
    music2latent  waveform  44.1 kHz        consistency autoencoder                       CD4MT

No torch is imported until a codec is loaded.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.codecs.weights import find_weights
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from models.codecs.base import Codec

SAMPLE_RATES = {  # Hz; the codecs, and what each works at
    "mdct": (44100, 24000),
    "meldct": (16000,),
    "audioldm2": (16000,),
    "encodec": (24000,),
    "music2latent": (44100,),
}
ANALYTIC = ("mdct", "meldct")
MEL_CODECS = ("meldct", "audioldm2")


def check_codec(name: str) -> None:
    """UserError with the valid names where there is no codec of that name."""
    if name not in SAMPLE_RATES:
        raise UserError(f"no codec '{name}'.{nearest(name, SAMPLE_RATES)} There are: {', '.join(SAMPLE_RATES)}.")


def check_rate(name: str, sample_rate: int) -> None:
    """UserError where codec ``name`` does not work at ``sample_rate`` Hz."""
    if sample_rate not in SAMPLE_RATES[name]:
        rates = " or ".join(str(rate) for rate in SAMPLE_RATES[name])
        fitting = ", ".join(codec for codec, rates in SAMPLE_RATES.items() if sample_rate in rates) or "none"
        raise UserError(
            f"codec {name} works at {rates} Hz, this is audio of {sample_rate} Hz; codecs for that: {fitting}."
        )


def weights_identity(name: str, weights_folder: Path | None = None) -> str | None:
    """What a codec's latents depend on besides code: None for analytic ones. UserError where the weights are missing."""
    check_codec(name)
    return None if name in ANALYTIC else find_weights(name, weights_folder).identity


def codec_of(info: Mapping[str, Any], device: str = "cpu") -> Codec:
    """The codec whose latents a dataset holds, by its manifest's ``info``; one a process and device.

    Where the info names no weights of a codec that has some there is no data (``TrainModule.typical_data``): then EnCodec, which trains
    with its decoder, is given as it was drawn. Raises UserError as ``load_codec`` does, and where the weights at hand are not those that
    the latents were made with.
    """
    latent = info["latent"]
    return _codec_of(latent["codec"], latent["weights_hash"], latent["sample_rate"], device)


@functools.cache
def _codec_of(name: str, weights_hash: str | None, sample_rate: int, device: str) -> Codec:
    if name == "encodec" and weights_hash is None:
        from models.codecs.encodec import as_drawn

        return as_drawn(device)
    codec = load_codec(name, device=device, sample_rate=sample_rate)
    if codec.weights_hash != weights_hash:
        raise UserError(
            f"the data's latents were made with other weights of {name} ({weights_hash}) than those at hand ({codec.weights_hash}); "
            f"point SLURMPHONY_WEIGHTS at those, or prepare the latents again."
        )
    return codec


def load_codec(
    name: str, weights_folder: Path | None = None, device: str = "cpu", sample_rate: int | None = None
) -> Codec:
    """The codec, frozen, on ``device``. ``sample_rate`` (Hz) may be left out where the codec has but one.

    ``weights_folder`` None reads $SLURMPHONY_WEIGHTS. Raises UserError for an unknown name, another sample rate, and weights that are
    missing, damaged or of another architecture.
    """
    check_codec(name)
    rates = SAMPLE_RATES[name]
    if sample_rate is None:
        if len(rates) > 1:
            raise UserError(f"codec {name} has several sample rates; say which: {', '.join(map(str, rates))} Hz.")
        sample_rate = rates[0]
    check_rate(name, sample_rate)
    weights_identity(name, weights_folder)  # missing weights are told before the libraries' long imports
    os.environ["HF_HUB_OFFLINE"] = "1"  # before they are imported: they would ask the network for what is here
    try:
        module = importlib.import_module(f"models.codecs.{name}")
    except ModuleNotFoundError as error:
        raise UserError(f"codec {name} needs the package {error.name}; type: make setup") from error
    import torch

    with torch.inference_mode(False):  # else weights loaded while generating could never pass gradients in training
        codec: Codec = module.load(weights_folder, device, sample_rate)
    return codec
