"""Folders of random weights in the layout that fetch_weights.py leaves, labelled as what they are. For tests only.

EnCodec and music2latent have one architecture and come at full size; AudioLDM2's parts are drawn small, with its shapes.
"""

import hashlib
from pathlib import Path

import torch

from models.codecs.weights import WeightFile, write_manifest
from pipeline.files import hash_file

LICENCE = "random numbers, a stand-in for tests: they sound like nothing."


def declare(root: Path, name: str) -> Path:
    """Write the manifest over what lies in ``root/name``."""
    files = []
    for path in sorted(p for p in (root / name).rglob("*") if p.is_file() and p.name != "manifest.json"):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        inside = path.relative_to(root / name).as_posix()
        files.append(WeightFile(inside, "stand-in", path.stat().st_size, sha256, hash_file(path), "nothing"))
    write_manifest(name, root, LICENCE, files)
    return root


def write_encodec(root: Path) -> Path:
    from encodec import EncodecModel

    torch.manual_seed(0)
    (root / "encodec").mkdir(parents=True)
    aside = root / "encodec/aside"
    torch.save(EncodecModel.encodec_model_24khz(pretrained=False).state_dict(), aside)
    digits = hashlib.sha256(aside.read_bytes()).hexdigest()[:8]
    aside.rename(root / f"encodec/encodec_24khz-{digits}.th")
    return declare(root, "encodec")


def write_music2latent(root: Path) -> Path:
    from music2latent.models import UNet

    torch.manual_seed(0)
    model = UNet()
    for name, weight in model.named_parameters():
        if name.endswith("conv_out.weight"):
            torch.nn.init.normal_(weight, std=1.0)  # drawn as zero, it would decode everything to the same
    (root / "music2latent").mkdir(parents=True)
    torch.save({"gen_state_dict": model.state_dict()}, root / "music2latent/music2latent.pt")
    return declare(root, "music2latent")


def write_audioldm2(root: Path) -> Path:
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(1, 1, block_out_channels=(32, 32, 32), latent_channels=8, scaling_factor=0.4, **blocks)
    rates, kernels = [5, 4, 2, 2, 2], [16, 16, 8, 4, 4]
    sizes = {"model_in_dim": 64, "upsample_rates": rates, "upsample_kernel_sizes": kernels}
    config = SpeechT5HifiGanConfig(sampling_rate=16000, upsample_initial_channel=64, normalize_before=False, **sizes)
    vae.save_pretrained(root / "audioldm2/vae")
    SpeechT5HifiGan(config).save_pretrained(root / "audioldm2/vocoder")
    return declare(root, "audioldm2")
