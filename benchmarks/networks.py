"""The recipes' networks as benchmarks build them, for data as the recipe gives it; a codec that a loss decodes with has random weights."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from models import registry
from models.codecs import codec_of, weights_identity
from models.codecs.weights import ENVIRONMENT
from pipeline.config import RunConfig
from pipeline.train_module import TrainModule
from tests.models.stand_in_weights import write_encodec

FULL = (
    "cd4mt", "cd4mt_medium", "cqtml", "cqtml_cnn", "cqtml_reward", "cqtml_policy", "diff_mst", "diff_mst_vocal", "dismix_simple", "dismix",
    "jingle_d",
)  # fmt: skip


def network(config: RunConfig) -> TrainModule:
    """The module of ``config``. EnCodec, whose decoder is a part of Jingle_D's step, is of its own size, with weights drawn for this."""
    kind = registry.part(config.model, "train_module").TrainModule
    data = kind.typical_data(config)
    if config.model.system == "jingle_d" and data["latent"]["codec"] == "encodec":
        with tempfile.TemporaryDirectory(prefix="bench-weights-") as folder:
            os.environ[ENVIRONMENT] = str(write_encodec(Path(folder)))
            data["latent"]["weights_hash"] = weights_identity("encodec")
            codec_of(data)  # loaded once a process: the folder is not needed again
    return kind(config, data)
