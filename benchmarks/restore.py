"""What it costs to go on with a run at any position of a very large dataset: seconds and memory up to the first batch.

    python -m benchmarks.restore [--shards 10000] [--samples 10000] [--repeats 5] [--folder DIR]

A dataset of ``shards`` x ``samples`` (one shard's files, and links to them under all the other names) is restored in fresh
processes, each at another position; from a warm page cache. Told are the parts, and how much the process has grown by each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measure import many_files
from benchmarks.rows import Row, amount, hand_over
from data_prep.shards import ShardWriter, commit
from pipeline.loader import Loader
from pipeline.manifest import FORMAT, MANIFEST, ShardInfo, read_manifest, sealed

BATCH = 64


def write_dataset(folder: Path, shards: int, samples: int) -> None:
    """One shard of ``samples`` small samples, and links to it under ``shards`` names."""
    with ShardWriter(folder, "writing") as writer:
        for number in range(samples):
            writer.add(f"{number:08d}", {"id": np.array(number)})
        written = writer.finish()
        commit(writer, folder, "original")
    lines = []
    for number in range(shards):
        info = ShardInfo(
            f"train-{number:06d}", "train", samples, written.tar_size, written.tar_hash, written.index_hash
        )
        lines.append(asdict(info))
        for end in ("tar", "index.npy"):
            (folder / f"{info.name}.{end}").symlink_to(folder / f"original.{end}")
    tree = {"format": FORMAT, "dataset": "bench", "recipe": "bench", "codec": None, "info": {}, "shards": lines}
    (folder / MANIFEST).write_bytes(sealed(tree))


def restore(folder: Path, position: int) -> dict[str, list[float]]:
    """Of each part: seconds, and megabytes by which this process has grown."""
    process, parts = psutil.Process(), {}
    began, size = time.perf_counter(), process.memory_info().rss

    def told(part: str) -> None:
        parts[part] = [time.perf_counter() - began, (process.memory_info().rss - size) / 1e6]

    manifest = read_manifest(folder)
    told("manifest read")
    with Loader(manifest, "train", batch_size=BATCH, position=position) as loader:
        told("loader made")
        batch = next(iter(loader))
        told("first batch")
        assert int(batch["position"][0]) == position
        parts["state, bytes"] = [float(len(json.dumps(loader.state_after(1)))), 0.0]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=10_000, help="a shard")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the dataset is made for the while (default: the system's)")
    parser.add_argument("--position", type=int, help=argparse.SUPPRESS)  # this is one of the fresh processes
    args = parser.parse_args()
    if args.position is not None:
        print(json.dumps(restore(args.folder, args.position)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) if args.folder else many_files("bench-restore-") as folder:
        write_dataset(Path(folder), args.shards, args.samples)
        found = []
        for repeat in range(args.repeats):
            position = 12_345_678_901_234 + repeat * 98_765_432_109
            line = [sys.executable, "-m", "benchmarks.restore", "--folder", str(folder), "--position", str(position)]
            found.append(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout))
    table = Table("up to", "seconds (most)", "MB (most)", title=f"{args.shards * args.samples:,} samples")
    for part in ("manifest read", "loader made", "first batch"):
        seconds, megabytes = zip(*(parts[part] for parts in found), strict=True)
        table.add_row(
            part,
            f"{statistics.median(seconds):.3f} ({max(seconds):.3f})",
            f"{statistics.median(megabytes):.1f} ({max(megabytes):.1f})",
        )
    Console().print(table)
    first, manifest = ([parts[name][0] for parts in found] for name in ("first batch", "manifest read"))
    count = f"{args.shards * args.samples:,} samples"
    hand_over(
        "restore",
        [
            Row(
                f"from a manifest of {count} to a batch anywhere",
                amount(first, "s"),
                f"of it reading the manifest: {amount(manifest, 's')}",
                first,
                "s",
            ),
        ],
    )
    print(f"state of a checkpoint: {max(parts['state, bytes'][0] for parts in found):.0f} bytes")


if __name__ == "__main__":
    main()
