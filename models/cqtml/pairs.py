"""Two outputs for one input, for people to compare, and what the scripted judge says of them.

A pair's fields:

    cqt.npy     float16 (2, 84, T)   as prepared: what the reward hears
    audio.npy   int16 (n,)           mono, full scale 32768: what people hear
    a.npy b.npy float16 (4, T)       brightness of each light and frame
    meta.json   input (key of the segment), sample_rate, frame_rate, temperature [of a, of b], weights (hash), seed, and left: "a" or "b",
                which is shown on the left

The temperature of a side, the noise and the place on the screen are keyed by the pair, so nobody can learn that one side is the better.

Shapes: T frames, n audio samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xxhash

from models.cqtml.api import Generating, draw_one, whole_logits
from models.cqtml.config import FRAME_RATE, PairsConfig
from models.cqtml.judge import judged
from models.features import CQT
from pipeline.rng import KeyedRandom, key

TIE = 0.02  # difference of scores below which the scripted judge has no preference


def pair(
    module: Generating, sample: dict[str, Any], name: str, number: int, section: PairsConfig, weights: str
) -> dict[str, Any]:
    """Fields of pair ``number`` of a segment, whose ``cqt`` and ``audio`` are in ``sample`` and whose key is ``name``."""
    own = xxhash.xxh3_64_intdigest(f"{name}/{number}".encode()) >> 1
    random = KeyedRandom(section.seed)
    side, *heat = random.uniform("cqtml/pair", torch.tensor([own]), (3,))[0].tolist()
    temperatures = [section.temperatures[int(share * len(section.temperatures))] for share in heat]
    cqt = torch.from_numpy(sample["cqt"])
    logits, head = whole_logits(module, cqt), module.model_config.head
    both = [
        draw_one(logits, head, cqt.shape[-1], temperature, key(section.seed, f"cqtml/pair/{letter}", own))
        for letter, temperature in zip("ab", temperatures, strict=True)
    ]
    meta = {
        "input": name,
        "sample_rate": CQT.sample_rate,
        "frame_rate": FRAME_RATE,
        "temperature": temperatures,
        "left": "a" if side < 0.5 else "b",
        "weights": weights,
        "seed": section.seed,
    }
    first, second = (lights.cpu().numpy().astype(np.float16) for lights in both)
    heard = {"cqt": sample["cqt"].astype(np.float16), "audio": sample["audio"]}
    return heard | {"a": first, "b": second, "meta": meta}


def verdict(sample: dict[str, Any]) -> str:
    """The scripted judge's choice between the sides of a pair: "a", "b" or "tie"."""
    lights = torch.from_numpy(np.stack([sample["a"], sample["b"]]))[None].float()
    first, second = judged(lights, {"cqt": torch.from_numpy(sample["cqt"])[None].float()})[0].tolist()
    return "tie" if abs(first - second) < TIE else "a" if first > second else "b"
