"""What the manifests of both cases' recipes say alike, for looking at a model where no data is prepared."""

from __future__ import annotations

from typing import Any

from pipeline.config import RunConfig

DEMO_INSTRUMENTS = ["violin", "flute", "clarinet", "trumpet"]
STRINGS = ["violin", "viola", "cello", "double bass"]
WOODWIND = ["flute", "oboe", "clarinet", "saxophone", "bassoon"]
BRASS = ["trumpet", "horn", "trombone", "tuba"]


def common(config: RunConfig, bands: int, hop: int, frames: int) -> dict[str, Any]:
    """Instruments, and mels of ``frames`` frames of ``bands`` bands, ``hop`` samples apart at 16 kHz."""
    demo = config.data.recipe.endswith("_demo")
    return {
        "instruments": DEMO_INSTRUMENTS if demo else [*STRINGS, *WOODWIND, *BRASS],
        "frames": frames,
        "seconds": frames * hop / 16000,
        "sample_rate": 16000,
        "mel": {
            "bands": bands, "window": 1024, "hop": hop, "f_min": 0.0, "f_max": 8000.0, "floor": 1e-5,
            "compression": "natural logarithm",
        },
        "mean": -5.4,
        "std": 2.3,
    }  # fmt: skip
