"""Which pretrained weights there are, where their publishers keep them, and under what licence.

Only EnCodec's publisher names a hash (in the file's name). The others are taken on trust the first time: the hub's own word where it sends
one, and what came first is what every later fetch must be.
"""

from __future__ import annotations

from dataclasses import dataclass

MB = 1_000_000
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Published:
    """One file. ``cap``: bytes beyond which it is not what we asked for; ``sha256``: its first digits where they are known."""

    path: str
    url: str
    cap: int
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """``use``: who needs it. ``licence``: one line for dataset cards."""

    use: str
    licence: str
    files: tuple[Published, ...]


def _audioldm2(path: str, cap: int) -> Published:
    return Published(path, f"{HUB}/cvssp/audioldm2/resolve/main/{path}", cap)


CATALOGUE = {
    "encodec": Entry(
        "Jingle_D: 24 kHz waveforms",
        "EnCodec 24 kHz, Meta: released under CC BY-NC 4.0; the code has been MIT since 2023, which does not name the weights.",
        (
            Published(
                "encodec_24khz-d7cc33bc.th",
                "https://dl.fbaipublicfiles.com/encodec/v0/encodec_24khz-d7cc33bc.th",
                200 * MB,
                "d7cc33bc",
            ),
        ),
    ),
    "music2latent": Entry(
        "CD4MT: 44.1 kHz waveforms",
        "music2latent, Sony CSL Paris: CC BY-NC 4.0.",
        (Published("music2latent.pt", f"{HUB}/SonyCSLParis/music2latent/resolve/main/music2latent.pt", 1000 * MB),),
    ),
    "audioldm2": Entry(
        "DisMix: 16 kHz mels and their waveforms",
        "AudioLDM 2 (VAE and vocoder), CVSSP, University of Surrey: CC BY-NC-SA 4.0.",
        (
            _audioldm2("vae/config.json", MB),
            _audioldm2("vae/diffusion_pytorch_model.safetensors", 500 * MB),
            _audioldm2("vocoder/config.json", MB),
            _audioldm2("vocoder/model.safetensors", 500 * MB),
        ),
    ),
    "cnn14": Entry(
        "Diff-MST: the encoder's start",
        "PANNs CNN14, Kong et al.: CC BY 4.0.",
        (
            Published(
                "Cnn14_mAP=0.431.pth",
                "https://zenodo.org/records/3987831/files/Cnn14_mAP%3D0.431.pth?download=1",
                600 * MB,
            ),
        ),
    ),
}
