"""A run's weights as one plain file: ``python jobs/export.py RUN --out FILE.safetensors``.

The averaged weights where the run keeps them. Whatever trained it, on however many ranks: the file holds whole tensors under the names
of ``TrainModule.state_dict()``, and says in its metadata which run and step they are of.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from jobs.configs import load_frozen
from pipeline.errors import RunFailed, UserError, run_command
from pipeline.files import fsync_folder
from pipeline.runs import RunFolder, find_run, runs_root


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python jobs/export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", help="a run folder, its name (dismix_demo/1f3a9c2e), or a config's name (its newest run)"
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write; its name ends in .safetensors")
    parser.add_argument("--raw", action="store_true", help="the weights that were being trained, not their average")
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args(words)
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: name a file that ends in .safetensors, which is what is written.")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file.")
    export(find_run(args.run, runs_root(args.runs)), out, raw=args.raw)
    print(out)
    return 0


def export(run: RunFolder, out: Path, *, raw: bool) -> None:
    """Write ``out``: the old file or the whole new one, whatever happens. RunFailed where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from pipeline.checkpoint import trained_weights

    config = load_frozen(run.config_file)
    weights, step = trained_weights(run.path, averaged=not raw)
    kind = "averaged" if config.trainer.ema and not raw else "raw"
    facts = {"run": run.name, "system": config.model.system, "step": str(step), "weights": kind}
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_file(weights, aside, metadata=facts)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(out)
        fsync_folder(out.parent)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise RunFailed(f"{out} could not be written: {getattr(error, 'strerror', None) or error}.") from error
    count = sum(tensor.numel() for tensor in weights.values())
    print(f"{run.name}: {kind} weights of step {step}, {count:,} numbers in {len(weights)} tensors", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
