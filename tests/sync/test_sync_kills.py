"""SIGTERM and SIGKILL in the middle of a pull: under its name lies a whole file or none, and one retry brings all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
import xxhash

from pipeline.runs import RunFolder
from tests.monitoring.run_factory import grow
from tests.sync.cluster_runs import add_checkpoint, content, whole_run
from tests.sync.far_side import FarSide

FORKING = Path(__file__).with_name("forking.py")
PARTS = "metrics,samples,checkpoints"
KILLS = 25  # a test; with the soak's seeds 800


class Pulls:
    """Pulls of all parts that can be killed at any moment."""

    def __init__(self, far: FarSide) -> None:
        words = ["faraway", "--only", PARTS, "--to", str(far.here / "pulled")]
        command = [sys.executable, str(FORKING), str(far.profiles), *words]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=far.environment)

    def read(self, pipe) -> str:
        line = pipe.readline()
        assert line, "the forking process has ended"
        return line

    def run(self, kill: tuple[float, int, bool] | None) -> int:
        """One pull; ``kill``: after how many seconds, by which signal, with its rsync or alone. Returns its wait status."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        child = int(self.read(self.process.stdout))
        while self.read(self.process.stderr) != "began\n":  # what the one before said comes first
            pass
        if kill:
            time.sleep(kill[0])
            with suppress(ProcessLookupError):
                (os.killpg if kill[2] else os.kill)(child, kill[1])
        return int(self.read(self.process.stdout))

    def close(self) -> None:
        self.process.communicate()  # closes its stdin, which ends it


def change(far: FarSide, run: RunFolder, turn: int, versions: dict[str, set[bytes]]) -> None:
    """The cluster goes on: journals grow, files are replaced, a checkpoint is added; what each file has ever been is kept."""
    grow(run, range(1000 * turn + 100, 1000 * turn + 300))
    for number in range(6):
        path = run.samples / f"{number}.wav"
        aside = path.with_name(".aside")
        aside.write_bytes(os.urandom(150_000))
        aside.replace(path)
    if turn % 4 == 0:
        add_checkpoint(run, 1000 + turn, 400_000)
    for name, payload in content(far.runs).items():
        versions[name].add(xxhash.xxh3_128_digest(payload))


def check(far: FarSide, versions: dict[str, set[bytes]]) -> None:
    for name, payload in content(far.pulled).items():
        if name.endswith(".jsonl"):
            assert (far.runs / name).read_bytes().startswith(payload), name
        else:
            assert xxhash.xxh3_128_digest(payload) in versions[name], f"{name} is half"
    for folder in far.pulled.glob("*/*/checkpoints/*"):
        assert len(list(folder.iterdir())) == 5, "a checkpoint that is there is all there"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 32))])
def test_killed_at_random_moments_one_retry_converges(far: FarSide, seed):
    run = whole_run(far)
    draw = random.Random(seed)
    versions: dict[str, set[bytes]] = defaultdict(set)
    pulls = Pulls(far)
    change(far, run, 0, versions)
    began = time.monotonic()
    assert pulls.run(None) == 0
    whole = time.monotonic() - began
    cut = turn = 0
    try:
        while cut < KILLS:
            turn += 1
            assert turn <= 10 * KILLS, "hardly a pull was cut"
            change(far, run, turn, versions)
            kill = (draw.uniform(0, whole), draw.choice((signal.SIGTERM, signal.SIGKILL)), draw.random() < 0.5)
            # Others work on this machine, too: what was whole at that moment takes less now, what was not may take more.
            done = pulls.run(kill) == 0
            whole = kill[0] if done else 1.1 * whole
            cut += not done
            check(far, versions)
        assert pulls.run(None) == 0
    finally:
        pulls.close()
    assert content(far.pulled) == {
        n: p for n, p in content(far.runs).items() if "/code/" not in n and "/logs/" not in n
    }
    left = [path for path in (far.pulled / ".sync" / "incoming").rglob("*") if path.is_file()]
    assert not left, "what was half stays no longer than the next pull"
