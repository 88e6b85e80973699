"""How fast a dataset is prepared, beside the bare decoding and resampling of the same files on the same cores.

    python benchmarks/prepare.py [--tracks 24] [--seconds 60] [--repeats 3] [--folder DIR]
    python benchmarks/prepare.py --dataset NAME --source DIR [--recipe R]      the same for a real dataset

- bare: the stage's ``load`` alone for every input, in processes that share the inputs out beforehand; nothing is hashed or written.
- prepared: the whole of ``prepare.py``: inputs hashed twice, samples made, tars written, fsynced, read back, committed, manifest.
Both start their processes anew, and both with 1 and with 2 of them; in one run, taking turns. A ratio compares what one turn measured:
the time that passed, and the CPU time of all processes, which says the same on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flac_stage import FlacStage, write_source
from rich.console import Console
from rich.table import Table

from data_prep.engine import prepare
from data_prep.finish import finish
from data_prep.prepare import find_stage
from data_prep.stage import Input, Stage

PROCESSES = (1, 2)


def load_all(stage: Stage, source: Path, inputs: list[Input]) -> None:
    """A process of the bare contender."""
    for item in inputs:
        stage.load(item, lambda path: (source / path).read_bytes())


def bare(stage: Stage, source: Path, processes: int) -> None:
    inputs = stage.scan(source)
    context = multiprocessing.get_context("spawn")
    shares = [inputs[number::processes] for number in range(processes)]
    crew = [context.Process(target=load_all, args=(stage, source, share)) for share in shares]
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


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


def show(seconds: dict[str, list[tuple[float, float]]], inputs: int) -> None:
    columns = ("contender", "seconds", "inputs/s", "x bare", "x bare, CPU time", "scaling from 1")
    table = Table(*columns, title=f"{os.cpu_count()} cores")
    rows = list(seconds.items())
    for at, (name, times) in enumerate(rows):
        beside, alone, processes = rows[at - at % 2][1], rows[at % 2][1], PROCESSES[at // 2]
        median = statistics.median(passed for passed, _ in times)
        table.add_row(
            name,
            f"{median:.1f}",
            f"{inputs / median:.2f}",
            *(spread([b[kind] / t[kind] for b, t in zip(beside, times, strict=True)]) for kind in (0, 1)),
            spread([one[0] / t[0] / processes for one, t in zip(alone, times, strict=True)]),
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=24, help="of four stems; made for the while")
    parser.add_argument("--seconds", type=float, default=60.0, help="a track")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where all is made for the while (default: the system's)")
    parser.add_argument("--dataset", help="a real one instead, as prepare.py knows it")
    parser.add_argument("--source", type=Path, help="where it lies")
    parser.add_argument("--recipe")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        if args.dataset:
            stage, source = find_stage(args.dataset, args.recipe), args.source
        else:
            stage, source = FlacStage("flac_stems", inputs_per_shard=1), Path(name) / "source"
            write_source(source, args.tracks, args.seconds)
        show(measure(stage, source, Path(name) / "out", args.repeats), len(stage.scan(source)))


if __name__ == "__main__":
    main()
