"""A system's figures from a trained run: ``python jobs/evaluate.py RUN``; as a table, and as ``RUN/evaluation.json``."""

from __future__ import annotations

import argparse
import sys

from jobs.configs import add_place_arguments, output_folder
from pipeline.errors import run_command
from pipeline.files import without_nan, write_json
from pipeline.runs import find_run, runs_root


def main() -> int:
    parser = argparse.ArgumentParser(prog="python jobs/evaluate.py", description=__doc__)
    parser.add_argument(
        "run", help="a run folder, its name (dismix_demo/1f3a9c2e), or a config's name (its newest run)"
    )
    parser.add_argument("--out", metavar="DIR", help="where pictures and details go; default: the run's figures/")
    add_place_arguments(parser)
    args = parser.parse_args()
    run = find_run(args.run, runs_root(args.runs))

    from jobs.trained import load_trained
    from models import registry

    trained = load_trained(run, args.data, args.device)
    data = trained.require_data()
    print(f"{run.name}: on held-out samples, some minutes on a CPU...", file=sys.stderr, flush=True)
    with output_folder(args.out, run.figures) as out:
        figures = registry.part(trained.config.model, "evaluate").evaluate(trained.module, data, out)
    show(figures)
    kept, lost = without_nan(figures)
    if lost:
        print(f"warning: no finite number, so null in the file: {', '.join(lost)}", file=sys.stderr)
    write_json(run.evaluation_file, {"step": trained.step, "data": trained.data["identity"], "figures": kept})
    print(f"written to {run.evaluation_file}", file=sys.stderr)
    print(run.evaluation_file)
    return 0


def show(figures: dict) -> None:
    """Figures as a table on stderr; a figure with an interval is ``{"value", "low", "high"}``."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", "95 % interval")
    for name, figure in figures.items():
        if isinstance(figure, dict) and "value" in figure:
            table.add_row(name, f"{figure['value']:.4g}", f"{figure['low']:.4g} .. {figure['high']:.4g}")
        elif isinstance(figure, int | float):
            table.add_row(name, f"{figure:.4g}", "")
    Console(stderr=True).print(table)


if __name__ == "__main__":
    run_command(main)
