"""What a CD4MT consistency model costs and loses against diffusion: distances and times of both, and their ratios with intervals.

    python benchmarks/cd4mt_ratio.py CONSISTENCY_RUN DIFFUSION_RUN [--split valid] [--middle 2 4 8] [--seeds 10] [--runs DIR]

Distances are those of ``jobs/evaluate.py``: Fréchet over log-mel statistics, of 48 draws a seed against the whole split. A seed is the
same first noise for both runs, so ratios are bootstrapped over pairs of seeds. ``--middle`` tries second levels of two steps: choose on
``valid``, judge once on ``test``. The last columns are of all draws at once, whose distance has less of the bias of few draws. Needs
two trained runs, so it is no part of ``make bench``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jobs.trained import Trained, load_trained
from models.cd4mt import evaluate
from models.cd4mt.statistics import Comparison, Spectra, spectra
from models.cd4mt.train_module import TrainModule
from models.metrics import mean, ratio_of_means
from pipeline.errors import UserError, run_command
from pipeline.runs import find_run, runs_root

WHAT = {"total": "mixture", "stems": "mean of the stems"}


def sampled(module: TrainModule, steps: int, seeds: int) -> tuple[list[Tensor], float]:
    """Draws of each seed, (DRAWS, S, C, L), and the seconds that one took in the mean."""
    draws, seconds = zip(*(evaluate.drawn(module, steps, seed) for seed in range(seeds)), strict=True)
    return list(draws), sum(seconds) / seeds


def main() -> None:
    parser = argparse.ArgumentParser(description="A consistency model against diffusion.")
    parser.add_argument("consistency", help="a run of cd4mt_demo")
    parser.add_argument("diffusion", help="a run of cd4mt_demo_edm")
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--middle", nargs="+", type=float, help="second levels of two steps (default: the run's own)")
    parser.add_argument("--seeds", type=int, default=evaluate.SEEDS)
    parser.add_argument("--runs", help="where run folders lie")
    args = parser.parse_args()
    few, many = (load_trained(find_run(run, runs_root(args.runs))) for run in (args.consistency, args.diffusion))
    if args.seeds < 2:
        raise UserError("--seeds: an interval needs at least 2.")
    if few.data["identity"] != many.data["identity"]:
        raise UserError(f"{few.run.name} and {many.run.name} were trained on different data; compare runs of the same.")
    with torch.no_grad():
        report(few, many, args)


def report(few: Trained, many: Trained, args: argparse.Namespace) -> None:
    module = few.module
    assert isinstance(module, TrainModule) and isinstance(many.module, TrainModule)
    folder: Path = few.require_data()
    songs, learned = (evaluate.songs_of(module, folder, split) for split in (args.split, "train"))
    compare = Comparison(module.stems, spectra(module, songs))
    config = module.model_config
    tried = {"35 steps, diffusion": sampled(many.module, 35, args.seeds), "one step": sampled(module, 1, args.seeds)}
    for middle in args.middle or [config.middle]:
        module.model_config = config.model_copy(update={"middle": middle})
        tried[f"two steps, {middle:g}"] = sampled(module, 2, args.seeds)
    some = [torch.randperm(len(learned), generator=torch.Generator().manual_seed(i)) for i in range(args.seeds)]
    tried["training songs"] = ([learned[order[: evaluate.DRAWS]] for order in some], 0.0)

    table = Table(title=f"{args.split}: {len(songs)} samples, {args.seeds} x {evaluate.DRAWS} draws")
    for heading in ("way", *(f"{w}{c}" for w in WHAT.values() for c in ("", ", ratio", ", all draws")), "ms a draw"):
        table.add_column(heading)
    base: dict[str, Tensor] = {}
    for name, (draws, seconds) in tried.items():
        seen = [spectra(module, draw) for draw in draws]
        each = [compare.distances(one) for one in seen]
        pooled = compare.distances(Spectra(torch.cat([one.log_mels for one in seen]), seen[0].rate))
        cells = []
        for what in WHAT:
            values = torch.tensor([one[what] for one in each])
            base.setdefault(what, values)
            figures = (mean(values), ratio_of_means(values, base[what]))
            cells += [f"{f['value']:.2f} ({f['low']:.2f} to {f['high']:.2f})" for f in figures] + [
                f"{pooled[what]:.2f}"
            ]
        table.add_row(name, *cells, f"{1000 * seconds:.1f}")
    Console(width=200).print(table)


if __name__ == "__main__":
    run_command(main)
