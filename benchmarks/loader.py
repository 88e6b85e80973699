"""How fast samples reach the trainer: our loader beside a raw read of the same bytes, stock webdataset, and files.

    python -m benchmarks.loader [--sizes 64K 1M 4M] [--megabytes 128] [--repeats 9] [--workers 1] [--folder DIR]

All of it from a warm page cache, in one run, the contenders taking turns; a ratio compares what one turn measured.
- raw, thrown away: the shards from end to end, a sample's bytes at a time into one small buffer, xxh3 of each; nothing is kept.
- raw, into batches: the same bytes and checksum, into the memory of batches, of as many as a loader that reads ahead has.
- loader: the training order (shuffled), checked, tensors. Once with its thread, once with processes.
- webdataset: stock, shuffled, decoded and batched to tensors; it checks nothing.
- torch DataLoader over files: a ``.npy`` a sample, shuffled, in the trainer's process and in processes; it checks nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
import xxhash
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import spread
from benchmarks.rows import Row, amount, hand_over, ratios
from data_prep.shards import ShardWriter, commit
from pipeline.loader import Loader
from pipeline.manifest import FORMAT, MANIFEST, Manifest, read_manifest, sealed
from pipeline.shards import ShardReader
from pipeline.workers import AHEAD

UNITS = {"K": 1 << 10, "M": 1 << 20}
SHARDS = 4
PASSES = 4  # over the data in a turn: a turn of milliseconds would measure the machine's moods (stock webdataset: one, it is slow)
THROWN, KEPT, OURS = "raw + xxh3, thrown away", "raw + xxh3, into batches", "loader, thread"
STOCK, FILES = "stock webdataset", "torch DataLoader over files"
COMPARED = "1M"  # the size of a sample at which all others are handed over
IN_MEMORY = AHEAD + 2  # batches: those read ahead, the one being trained on and the one being read


def write_dataset(folder: Path, sample_bytes: int, samples: int) -> Manifest:
    """Samples of one float32 array of that size and some JSON, in a few shards."""
    folder.mkdir()
    lines = []
    draw = np.random.default_rng(0)
    for shard in range(SHARDS):
        name = f"train-{shard:06d}"
        with ShardWriter(folder, f"{name}.writing") as writer:
            for number in range(shard, samples, SHARDS):
                latent = draw.random((8, sample_bytes // 32), np.float32)
                writer.add(f"{number:08d}", {"latent": latent, "meta": {"number": number}})
            written = writer.finish()
            commit(writer, folder, name)
        line = {"name": name, "split": "train", "samples": written.samples, "tar_size": written.tar_size}
        lines.append(line | {"tar_hash": written.tar_hash, "index_hash": written.index_hash})
    tree = {"format": FORMAT, "dataset": "bench", "recipe": "bench", "codec": None, "info": {}, "shards": lines}
    (folder / MANIFEST).write_bytes(sealed(tree))
    return read_manifest(folder)


def entries(manifest: Manifest) -> list[tuple[Path, list[tuple[int, int, int]]]]:
    """Every shard's tar and where its samples lie."""
    readers = [ShardReader(manifest.folder, shard) for shard in manifest.shards]
    return [(reader.path, [reader.entry(row) for row in range(len(reader))]) for reader in readers]


def raw(shards: list[tuple[Path, list[tuple[int, int, int]]]], memory: np.ndarray) -> float:
    """Seconds a sample; sample i goes to row i (mod the rows) of ``memory``, uint8 (rows, bytes of a sample)."""
    began, rows = time.perf_counter(), itertools.cycle(memory)
    for path, places in PASSES * shards:
        file = os.open(path, os.O_RDONLY)
        for (offset, size, checksum), row in zip(places, rows, strict=False):
            os.preadv(file, [row[:size]], offset)
            assert xxhash.xxh3_64_intdigest(row[:size]) == checksum
        os.close(file)
    return (time.perf_counter() - began) / (PASSES * sum(len(places) for _, places in shards))


def loader(manifest: Manifest, batch_size: int, workers: int) -> float:
    """Seconds a sample in the steady state: a few batches go before, so that memory and layouts are known."""
    steps = PASSES * manifest.samples("train") // batch_size
    with Loader(manifest, "train", batch_size=batch_size, workers=workers) as batches:
        stream = iter(batches)
        for _ in range(8):
            next(stream)
        began = time.perf_counter()
        for _ in range(steps):
            next(stream)
        return (time.perf_counter() - began) / (steps * batch_size)


def stock(manifest: Manifest, batch_size: int) -> float:
    """Seconds a sample of webdataset, as its documentation has it for training."""
    tars = [str(manifest.folder / f"{shard.name}.tar") for shard in manifest.shards]
    stream = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000).decode()
    batches = stream.to_tuple("latent.npy").batched(batch_size)
    began = time.perf_counter()
    count = sum(len(torch.as_tensor(latent)) for (latent,) in batches)
    assert count == manifest.samples("train")
    return (time.perf_counter() - began) / count


class Files(Dataset[torch.Tensor]):
    """A folder of arrays, one a sample."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self._paths[number]))


def write_files(folder: Path, manifest: Manifest) -> Files:
    """The arrays of all samples as files."""
    folder.mkdir()
    with Loader(manifest, "train", batch_size=1) as batches:
        for number, batch in zip(range(manifest.samples("train")), batches, strict=False):
            np.save(folder / f"{number:08d}.npy", batch["latent"][0].numpy())
    return Files(folder)


def of_files(files: Files, batch_size: int, workers: int) -> float:
    """Seconds a sample of torch's DataLoader; its processes stay from one pass to the next."""
    batches = DataLoader(files, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    next(iter(batches))
    began = time.perf_counter()
    count = sum(len(batch) for _ in range(PASSES) for batch in batches)
    return (time.perf_counter() - began) / count


def measure(manifest: Manifest, batch_size: int, workers: int, repeats: int) -> dict[str, list[float]]:
    shards, files = entries(manifest), write_files(manifest.folder / "files", manifest)
    rows = np.empty((IN_MEMORY * batch_size, max(size for _, places in shards for _, size, _ in places)), np.uint8)
    rows.fill(0)  # empty and then filled: numpy asks for huge pages for the one, as the loader does, not for zeros
    contenders: dict[str, Callable[[], float]] = {
        THROWN: partial(raw, shards, rows[:1]),
        KEPT: partial(raw, shards, rows),
        OURS: partial(loader, manifest, batch_size, 0),
        f"loader, {workers} process(es)": partial(loader, manifest, batch_size, workers),
        STOCK: partial(stock, manifest, batch_size),
        FILES: partial(of_files, files, batch_size, 0),
        f"{FILES}, {workers} process(es)": partial(of_files, files, batch_size, workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            seconds[name].append(run())
    return seconds


def compared(size: str, sample_bytes: int, seconds: dict[str, list[float]]) -> list[Row]:
    """What is handed over of one size: seconds a sample, ours over theirs; over all others at one size, to keep the table short."""

    def rate(name: str) -> str:
        return f"{name}: {amount([sample_bytes / statistics.median(seconds[name])], 'B/s')}"

    others = ((KEPT, None), (STOCK, 1.0), (FILES, 1.0))
    return [
        Row(
            f"time a sample of {size}B, warm cache",
            rate(OURS),
            rate(base),
            ratios(seconds[OURS], seconds[base]),
            at_most=most,
        )
        for base, most in (others if size == COMPARED else others[:1])
    ]


def add_rows(table: Table, size: str, sample_bytes: int, seconds: dict[str, list[float]]) -> None:
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(
            size,
            name,
            f"{1 / median:,.0f} ({1 / min(values):,.0f})",
            f"{sample_bytes / median / 1e9:.2f}",
            *(spread(ratios(seconds[base], values)) for base in (THROWN, KEPT, STOCK, FILES)),
        )
    table.add_section()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=["64K", "1M", "4M"], metavar="SIZE", help="of a sample, in K or M bytes"
    )
    parser.add_argument("--megabytes", type=int, default=128, help="of each data set")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where the data sets are made for the while (default: the system's)"
    )
    args = parser.parse_args()
    columns = (
        "sample",
        "reader",
        "samples/s (best)",
        "GB/s",
        "x raw, thrown away",
        "x raw, into batches",
        "x webdataset",
        "x DataLoader",
    )
    table = Table(
        *columns, title=f"median and spread of {args.repeats} repeats, warm page cache, {os.cpu_count()} cores"
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for size in args.sizes:
            sample_bytes = int(size[:-1]) * UNITS[size[-1]]
            samples = max(64, (args.megabytes << 20) // sample_bytes)
            manifest = write_dataset(Path(folder) / size, sample_bytes, samples)
            batch_size = 64 if sample_bytes < 1 << 20 else 16
            seconds = measure(manifest, batch_size, args.workers, args.repeats)
            add_rows(table, size, sample_bytes, seconds)
            rows += compared(size, sample_bytes, seconds)
    Console(width=170).print(table)
    hand_over("loader", rows)


if __name__ == "__main__":
    main()
