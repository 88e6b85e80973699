"""A run with pairs to compare, in the layout that generation writes, in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.manifest import FORMAT, sealed
from pipeline.runs import RunFolder
from tests.monitoring.run_factory import make_run
from tests.pipeline.shard_factory import write_shard

RATE = 22050
FRAME_RATE = RATE / 64
EVIL = '<script>document.title = "owned"</script><img src=x onerror=alert(1)>&"'


def pair(number: int, seconds: float = 1.0, song: str = EVIL, left: str = "a") -> dict[str, Any]:
    """Four tones one after the other, each of its own loudness; in ``a`` each has its lamp, in ``b`` all lamps breathe slowly."""
    time = np.arange(int(seconds * RATE)) / RATE
    beat = np.minimum((8 * time / seconds).astype(int), 7)
    phase = time % (seconds / 8)
    audio = 9000 * np.exp(-6 * phase) * np.sin(2 * np.pi * 220 * 2 ** ((number + 3 * beat) % 12 / 12) * time)
    frames = np.arange(1 + len(time) // 64) / FRAME_RATE
    struck = np.minimum((8 * frames / seconds).astype(int), 7) % 4
    glow = np.exp(-5 * (frames % (seconds / 8)))
    a = np.stack([np.where(struck == lamp, glow, 0.06) for lamp in range(4)])
    b = np.stack([0.5 + 0.45 * np.sin(2 * np.pi * frames / seconds + lamp) for lamp in range(4)])
    meta = {
        "input": song,
        "left": left,
        "sample_rate": RATE,
        "frame_rate": FRAME_RATE,
        "temperature": [0.7, 1.4],
        "weights": "c0de",
        "seed": number,
    }
    return {"audio": audio.astype(np.int16), "a": a.astype(np.float16), "b": b.astype(np.float16), "meta": meta}


def write_pairs(run: RunFolder, splits: dict[str, list[tuple[str, dict[str, Any]]]]) -> None:
    """RUN/pairs/ with one shard a split, of (key, sample)."""
    folder = run.path / "pairs"
    folder.mkdir(exist_ok=True)
    shards = [write_shard(folder, f"{split}-000000", split, samples) for split, samples in splits.items()]
    tree = {"format": FORMAT, "dataset": "cqtml", "recipe": "pairs", "codec": None, "info": {}, "shards": shards}
    (folder / "manifest.json").write_bytes(sealed(tree))


def run_with_pairs(root: Path, count: int = 6, seconds: float = 1.0, song: str = EVIL, left: str = "a") -> RunFolder:
    run = make_run(root, "cqtml_demo")
    write_pairs(run, {"train": [(f"p{i:03d}", pair(i, seconds, song, left)) for i in range(count)]})
    return run
