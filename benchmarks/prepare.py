"""How fast a dataset is prepared, beside the bare decoding and resampling of the same files on the same cores.

    python -m benchmarks.prepare [--tracks 12] [--seconds 60] [--repeats 3] [--folder DIR]       a recipe that only decodes and resamples
    python -m benchmarks.prepare --dataset slakh [--tracks 12] [--times 3] [--rate 48000]        a real recipe, on a demo corpus
    python -m benchmarks.prepare --dataset NAME --source DIR [--recipe R]                        the same for a real dataset

- bare: every audio file that the recipe reads is read, decoded to float32 and, where it has another rate than the recipe's, resampled by
  soxr VHQ, in processes that share the files out beforehand; nothing is added up, cut, measured, hashed or written.
- prepared: the whole of ``prepare.py``: inputs hashed twice, samples made, tars written, fsynced, read back, committed, manifest.
Both start their processes anew, and both with 1 and with 2 of them; in one run, taking turns. A ratio compares what one turn measured:
the time that passed, and the CPU time of all processes, which says the same on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from rich.console import Console
from rich.table import Table

from benchmarks.flac_stage import FlacStage, write_source
from benchmarks.measure import spread
from benchmarks.rows import Row, amount, hand_over, ratios
from data_prep import demo
from data_prep.engine import prepare
from data_prep.finish import finish
from data_prep.prepare import find_stage
from data_prep.stage import Stage

PROCESSES = (1, 2)
AUDIO = (".flac", ".wav", ".mp3", ".ogg")


def render(folder: Path, dataset: str, tracks: int, times: int, rate: int | None) -> None:
    """A demo corpus whose WAV and FLAC files are played ``times`` over, so that what starting costs does not count, at ``rate`` Hz."""
    for _ in importlib.import_module(demo.DATASETS[dataset]).render(folder, tracks, 0):
        pass
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".wav", ".flac") and (times > 1 or rate):
            audio, own = soundfile.read(path, dtype="float32", always_2d=True)
            audio = soxr.resample(audio, own, rate, quality="VHQ") if rate else audio
            subtype = soundfile.info(path).subtype
            soundfile.write(path, np.tile(np.clip(audio, -1, 32767 / 32768), (times, 1)), rate or own, subtype=subtype)


def decode_all(files: list[Path], rate: int | None) -> None:
    """A process of the bare contender."""
    for path in files:
        audio, own = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")
        if rate not in (None, own):
            soxr.resample(audio, own, rate, quality="VHQ")


def bare(stage: Stage, source: Path, processes: int) -> None:
    paths = sorted({source / file.path for item in stage.scan(source) for file in item.files})
    paths = [path for path in paths if path.suffix in AUDIO]
    rate = getattr(stage, "sample_rate", None)
    context = multiprocessing.get_context("spawn")
    crew = [context.Process(target=decode_all, args=(paths[n::processes], rate)) for n in range(processes)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
        assert process.exitcode == 0


def prepared(stage: Stage, source: Path, folder: Path, processes: int) -> None:
    plan, _ = prepare(stage, source, folder, processes, 0.05)
    finish(stage, plan, folder)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds that passed, and CPU seconds of this process and those it started and waited for."""
    began, before = time.perf_counter(), os.times()
    run()
    after = os.times()
    return time.perf_counter() - began, sum(after[:4]) - sum(before[:4])


def measure(stage: Stage, source: Path, folder: Path, repeats: int) -> dict[str, list[tuple[float, float]]]:
    contenders: dict[str, Callable[[], None]] = {}
    for processes in PROCESSES:
        contenders[f"bare, {processes} process(es)"] = partial(bare, stage, source, processes)
        contenders[f"prepared, {processes} process(es)"] = partial(prepared, stage, source, folder, processes)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            shutil.rmtree(folder, ignore_errors=True)
            seconds[name].append(timed(run))
    return seconds


def compared(what: str, seconds: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """What is handed over: the time that preparing takes, over bare decoding's, with 1 and with 2 processes."""
    rows = []
    for processes in PROCESSES:
        (bare_name, mine_name) = (f"{name}, {processes} process(es)" for name in ("bare", "prepared"))
        ours, theirs = ([passed for passed, _ in seconds[name]] for name in (mine_name, bare_name))
        told = (f"{mine_name}: {amount(ours, 's')}", f"decoding and resampling alone: {amount(theirs, 's')}")
        rows.append(Row(f"preparing {what}, {processes} process(es)", *told, ratios(ours, theirs)))
    return rows


def show(seconds: dict[str, list[tuple[float, float]]], inputs: int) -> None:
    columns = ("contender", "seconds", "inputs/s", "x bare", "x bare, CPU time", "scaling from 1", "x bare's scaling")
    table = Table(*columns, title=f"{os.cpu_count()} cores")
    rows = list(seconds.items())
    scaling = {}
    for at, (name, times) in enumerate(rows):
        with_one = rows[at % 2][1]
        scaling[name] = [one[0] / t[0] / PROCESSES[at // 2] for one, t in zip(with_one, times, strict=True)]
    for at, (name, times) in enumerate(rows):
        beside, of_bare = rows[at - at % 2][1], scaling[rows[at - at % 2][0]]
        median = statistics.median(passed for passed, _ in times)
        table.add_row(
            name,
            f"{median:.1f}",
            f"{inputs / median:.2f}",
            *(spread([b[kind] / t[kind] for b, t in zip(beside, times, strict=True)]) for kind in (0, 1)),
            spread(scaling[name]),
            spread([own / bare for own, bare in zip(scaling[name], of_bare, strict=True)]),
        )
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tracks", type=int, help="made for the while; 12 of four stems, of a demo corpus its own number"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="a track, without --dataset")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where all is made for the while (default: the system's)")
    parser.add_argument(
        "--dataset", choices=sorted(demo.DATASETS), help="a real recipe, by the dataset that it is cut from"
    )
    parser.add_argument("--source", type=Path, help="where the dataset lies (default: its demo corpus is made)")
    parser.add_argument("--recipe", help="default: the dataset's first")
    parser.add_argument("--times", type=int, default=1, help="how often a demo corpus' files are played over")
    parser.add_argument("--rate", type=int, help="Hz of a demo corpus' files (default: the dataset's)")
    parser.add_argument(
        "--inputs-per-shard", type=int, help="instead of the recipe's, so that few inputs can be shared out"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source: Path = args.source or Path(name) / "source"
        if args.dataset:
            stage = find_stage(args.dataset, args.recipe)
            if args.inputs_per_shard:
                stage = dataclasses.replace(stage, inputs_per_shard=args.inputs_per_shard)
            if not args.source:
                tracks = importlib.import_module(demo.DATASETS[args.dataset]).DEFAULT_TRACKS
                render(source, args.dataset, args.tracks or tracks, args.times, args.rate)
        else:
            stage = FlacStage("flac_stems", inputs_per_shard=1)
            write_source(source, args.tracks or 12, args.seconds)
        seconds = measure(stage, source, Path(name) / "out", args.repeats)
        show(seconds, len(stage.scan(source)))
    hand_over("prepare", compared(args.recipe or args.dataset or "FLAC stems", seconds))


if __name__ == "__main__":
    main()
