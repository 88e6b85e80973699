"""What an encoder begins with: CNN14 as its authors published it, or the encoder of any run, from a folder in the weights folder.

    <weights folder>/<name>/FILE.safetensors     by our names, as ``jobs/export.py`` writes a run; or
    <weights folder>/<name>/FILE.pth             a state dict, CNN14's names or ours; nothing but tensors is unpickled

Of CNN14 (Kong et al. 2020) the convolutions and the scales of their normalisations are taken. Its normalisation's statistics have no
counterpart, and its first one, its spectrograms and its classifier belong to other inputs and outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.codecs.tensors import read_tensors, refuse_differences
from models.codecs.weights import ENVIRONMENT, weights_root
from models.diff_mst.networks import MixingEngineer, SpectrogramEncoder
from pipeline.errors import UserError
from pipeline.files import hash_file

SUFFIXES = (".safetensors", ".pth", ".pt")
INSIDE = ("model", "state_dict")  # keys under which files of weights hold them
CNN14 = re.compile(r"conv_block(\d+)\.(conv|bn)(\d)\.(weight|bias)")
OURS = re.compile(r"(?:model\.)?(?:track_encoder\.)?((?:blocks|out|long_term)\..+)")


def begin_with(model: MixingEngineer, name: str) -> dict[str, str]:
    """Load ``name`` into all encoders of ``model``; the file's xxh3_128 by its name. UserError where it is missing or does not fit."""
    path = weights_file(name)
    state = translated(_tensors(path))
    encoders = [model.track_encoder] + ([model.reference_encoder] if model.refers else [])
    for encoder in encoders:
        load_body(encoder, state, path)
    return {f"{name}/{path.name}": hash_file(path)}


def weights_file(name: str) -> Path:
    """The one file of weights in the folder ``name`` of the weights folder."""
    root = weights_root()
    if root is None:
        raise UserError(
            f"model.encoder.pretrained={name} needs a weights folder: set {ENVIRONMENT}=DIR, where DIR/{name} holds it."
        )
    folder = root / name
    found = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES) if folder.is_dir() else []
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{folder} must hold one file of weights ({', '.join(SUFFIXES)}); there: {there}.")
    return found[0]


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file ({error}); export or fetch it again.") from None
    tree: Any = read_tensors(path)
    while isinstance(tree, Mapping) and (inner := next((tree[key] for key in INSIDE if key in tree), None)) is not None:
        tree = inner
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds no weights by name.")
    return {str(key): value for key, value in tree.items() if torch.is_tensor(value)}


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of ``SpectrogramEncoder``; what is none of an encoder is left out."""
    found = {}
    for key, value in state.items():
        if match := CNN14.fullmatch(key):
            block, kind, number, what = match.groups()
            found[f"blocks.{int(block) - 1}.{'norm' if kind == 'bn' else kind}{number}.{what}"] = value
        elif match := OURS.fullmatch(key):
            found[match[1]] = value
    return found


def load_body(encoder: SpectrogramEncoder, state: Mapping[str, Tensor], path: Path) -> None:
    """All blocks, and of the layers behind them what is given. UserError that lists what is missing, unknown or of another shape."""
    own = encoder.state_dict()
    refuse_differences(
        path,
        missing=[name for name in own if name.startswith("blocks.") and name not in state],
        unknown=sorted(state.keys() - own.keys()),
        reshaped=sorted(n for n in own.keys() & state.keys() if own[n].shape != state[n].shape),
    )
    encoder.load_state_dict(dict(state), strict=False)
