"""Run a small training as a user would, kill it at random moments, and compare what is left with an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.runs import RunFolder, list_runs
from tests.conftest import ROOT

STEPS = 60
SETTINGS = [
    f"trainer.max_steps={STEPS}", "trainer.save_every=5", "trainer.validate_every=20", "trainer.log_every=1",
    "trainer.sample_every=null", "trainer.ema=0.99", "trainer.keep.last=3", "model.simple.width=16", "model.simple.gru=8",
    "data.batch_size=16", "model.barlow_twins_group=8",
]  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """One runs root on one prepared dataset."""

    data: Path
    runs: Path

    def start(self, processes: int, *changes: str) -> subprocess.Popen[str]:
        words = [sys.executable, "jobs/launch.py", "dismix_demo", "--cluster", "local", "--gpus", str(processes)]
        settings = [word for change in (*SETTINGS, *changes) for word in ("--set", change)]
        command = [*words, *settings, "--data", str(self.data), "--runs", str(self.runs)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, processes: int, *changes: str) -> str:
        launcher = self.start(processes, *changes)
        output = launcher.communicate(timeout=300)[0]
        assert launcher.returncode == 0, output
        return output

    @property
    def run(self) -> RunFolder:
        (run,) = list_runs(self.runs)
        return run

    def final_hashes(self, step: int = STEPS) -> dict[str, str]:
        manifest = json.loads((self.run.checkpoints / f"step_{step:09d}" / "MANIFEST.json").read_text())
        return {name: entry["xxh3_128"] for name, entry in manifest["files"].items()}


def wait_for(happened, launcher: subprocess.Popen[str], seconds: float = 120) -> bool:
    """True once ``happened()``; False where the launcher ended before."""
    deadline = time.monotonic() + seconds
    while launcher.poll() is None:
        if happened():
            return True
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return False


def started_steps(lab: Lab, before: int) -> bool:
    """Has an attempt later than number ``before`` journalled a step?"""
    runs = list_runs(lab.runs)
    later = [p for r in runs for p in r.metrics.glob("attempt_*.jsonl") if int(p.stem[-3:]) > before]
    return any(p.stat().st_size > 200 for p in later)


def attempts(lab: Lab) -> int:
    return max((int(p.stem[-3:]) for r in list_runs(lab.runs) for p in r.metrics.glob("attempt_*.jsonl")), default=0)


def kill_at_random(lab: Lab, processes: int, rng: random.Random) -> str | None:
    """Start the run, kill launcher, ranks, or all of them at a random moment; None where it completed before."""
    before = attempts(lab)
    launcher = lab.start(processes)
    moment = rng.choice(["in a step", "in a step", "while saving", "while starting"])
    if moment == "while starting":
        time.sleep(rng.uniform(0.2, 6.0))
    elif wait_for(lambda: started_steps(lab, before), launcher):
        if moment == "while saving":
            wait_for(lambda: any(lab.run.checkpoints.glob(".writing_*")), launcher)
        else:
            time.sleep(rng.uniform(0.0, 0.6))
    if launcher.poll() is not None:
        launcher.communicate()
        return None
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    who = rng.choice(["launcher", "a rank", "everybody"])
    victims = {
        "launcher": [launcher.pid],
        "a rank": [p.pid for p in ranks[:1]],
        "everybody": [launcher.pid, *(p.pid for p in ranks)],
    }
    rng.shuffle(victims[who])
    for pid in victims[who]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            who += " (one had ended)"
    launcher.communicate(timeout=60)
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive, "a rank outlived its launcher"
    return f"{who}, {moment}"


def kill_many(lab: Lab, processes: int, kills: int, seed: int) -> list[str]:
    """Kill ``kills`` times; a run that completes in between is taken back to the middle by going on from an older checkpoint."""
    rng, done = random.Random(seed), []
    while len(done) < kills:
        how = kill_at_random(lab, processes, rng)
        if how is not None:
            done.append(how)
            print(f"kill {len(done)}: {how}", flush=True)
        else:
            for step in sorted(lab.run.checkpoints.glob("step_*"))[1:]:
                subprocess.run(["rm", "-r", "--", str(step)], check=True)
            lab.run.record("attempt", attempt=attempts(lab), after_step=0, note="taken back by the test")
    return done
