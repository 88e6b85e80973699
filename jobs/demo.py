"""The main job on this machine, no cluster, GPU, dataset or weights: ``make demo``.

Types the project's own commands one after the other, shows each, and ends with where everything lies. Interrupted anywhere, it goes on
from there when typed again, because each of the commands does.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pipeline.errors import RunFailed, run_command

ROOT = Path(__file__).resolve().parent.parent
RAW = Path("data/raw/cocochorales_demo")
PROCESSES = 2
SHOWN = {
    "single_pitch": "pitch of each new source is the one asked for",
    "single_instrument": "instrument of each new source is the one asked for",
    "mixture_pitch": "the same within the new mixture: pitch",
    "mixture_instrument": "the same within the new mixture: instrument",
    "judge_pitch_on_clean": "the judges on untouched sources: pitch",
    "judge_instrument_on_clean": "the judges on untouched sources: instrument",
}


def step(title: str, *words: str | Path) -> str:
    """Run one of our own commands and show it; returns the last line of its stdout. RunFailed where it fails."""
    command = ["python", *map(str, words)]
    print(f"\n== {title}\n$ {shlex.join(command)}", file=sys.stderr, flush=True)
    began = time.monotonic()
    # All of it lies in the project, whatever folders the person's own variables name.
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURMPHONY_")}
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise RunFailed(f"`{shlex.join(command)}` ended with exit code {done.returncode}; what it said stands above")
    print(f"   {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return (done.stdout.strip().splitlines() or [""])[-1]


def main() -> int:
    began = time.monotonic()
    step("a small corpus in the layout of CocoChorales", "data_prep/demo.py", "cocochorales", "--out", RAW)
    recipe = ("--recipe", "cocochorales_simple_demo")
    step("into shards", "data_prep/prepare.py", "cocochorales", "--source", RAW, *recipe, "--workers", "2")
    here = ("--cluster", "local", "--gpus", str(PROCESSES))
    folder = Path(step("training DisMix, two data-parallel processes", "jobs/launch.py", "dismix_demo", *here))
    step("figures on held-out mixtures", "jobs/evaluate.py", folder)
    out = folder / "samples" / "swap"
    swap = ("--sample", "0", "--swap-timbre", "0", "1")
    step("two notes change their instruments", "jobs/generate.py", folder, *swap, "--out", out)
    figures = json.loads((folder / "evaluation.json").read_text())["figures"]
    summary(folder, out, figures, time.monotonic() - began)
    return 0


def summary(folder: Path, out: Path, figures: dict, seconds: float) -> None:
    run = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    run_name = f"{run.parent.name}/{run.name}"
    print(f"\nDone in {seconds / 60:.1f} minutes.\n")
    print(f"  corpus        {RAW}")
    print("  shards        data/cocochorales_simple_demo")
    print(f"  run           {run}")
    for path in sorted(out.iterdir()):
        print(f"  {'picture' if path.suffix == '.png' else 'audio':12s}  {run / path.relative_to(folder)}")
    print("\nOn held-out tracks, after the sources of a mixture have exchanged their pitches (95 % interval):")
    for name, words in SHOWN.items():
        figure = figures[name]
        value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
        print(f"  {words:52s} {value:5.1f} %   ({low:.1f} .. {high:.1f})")
    print(f"""
Next:
  python jobs/launch.py dismix_demo --cluster local       says that the run is complete
  python jobs/launch.py --resume {run_name} --cluster local --gpus 2 \\
      --set model.kl=3 --set trainer.max_steps=4500       goes on with another loss weight, and records it
  python jobs/generate.py {run_name} --sample 3 --swap-pitch 0 1
  python monitoring/dashboard.py                          curves, pictures and audio in MLflow (after `make setup`)
  python jobs/launch.py dismix --nodes 1 --gpus 4 --dry-run
                                                          the script that a SLURM cluster would get
`source .venv/bin/activate` first, so that `python` is this project's.""")


if __name__ == "__main__":
    run_command(main)
