"""Preparation killed at random, by the clock and in the middle of its durable steps, alone and by many tasks: always the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.claims import Claims, enter
from data_prep.commits import WORK, read_committed, shard_files
from data_prep.engine import assist, complete, prepare
from data_prep.finish import finish
from data_prep.shards import differences
from tests.conftest import ROOT
from tests.data_prep.light_stage import LightStage, Steps, ended, fork, tree, write_source

STAGE = LightStage("light", 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), 30)


def build(source: Path, folder: Path) -> None:
    finish(STAGE, prepare(STAGE, source, folder, 0, 0.05)[0], folder)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, str]:
    """What an uninterrupted preparation gives."""
    folder = tmp_path_factory.mktemp("whole") / "light"
    build(source, folder)
    return tree(folder)


def help_out(source: Path, folder: Path, attempt: str = "abcd") -> None:
    assist(STAGE, source, folder, 0, 0.05, attempt)


def come_last(source: Path, folder: Path, attempt: str = "abcd") -> None:
    finish(STAGE, complete(STAGE, source, folder, 0, 0.05, attempt)[0], folder)


@pytest.mark.parametrize("tasks", [1, 3, 16])
def test_the_number_of_tasks_does_not_show(source, whole, tmp_path, tasks):
    folder = tmp_path / "light"
    assert [ended(pid) for pid in [fork(lambda: help_out(source, folder)) for _ in range(tasks)]] == [0] * tasks
    assert not (folder / "manifest.json").exists()
    come_last(source, folder)
    assert tree(folder) == whole


def test_a_task_leaves_when_others_have_all_that_is_left(source, whole, tmp_path):
    folder = tmp_path / "light"
    enter(folder / WORK)
    living = [Claims(folder / WORK) for _ in whole]
    for claims, name in zip(living, sorted(name for name in whole if name.endswith(".tar")), strict=False):
        assert claims.take(name.removesuffix(".tar"))
    assert ended(fork(lambda: help_out(source, folder)), 20) == 0, "it does not wait"
    assert not list(folder.glob("*.tar"))
    living[0].close()
    assert ended(fork(lambda: help_out(source, folder)), 20) == 0
    assert len(list(folder.glob("*.tar"))) == 1
    for claims in living:
        claims.close()
    come_last(source, folder)
    assert tree(folder) == whole


def killed_by_the_clock(source: Path, folder: Path, draw: random.Random) -> int:
    """The command with two workers, all of them killed; how many kills hit."""
    line = [sys.executable, "tests/data_prep/run_light.py", str(source), str(folder), "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LIGHT_SLEEP": "0.02"}
    process = subprocess.Popen(line, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(draw.uniform(0.2, 1.2))
    os.killpg(process.pid, signal.SIGKILL)
    return int(process.wait() == -signal.SIGKILL)


def killed_at_a_step(source: Path, folder: Path, draw: random.Random) -> int:
    """One process that does everything, killed before, during or after a durable step."""
    at, when = draw.randint(1, 25), draw.choice(["before", "during", "after"])

    def work() -> None:
        Steps(at, when)
        build(source, folder)

    return int(ended(fork(work)) == -signal.SIGKILL)


def killed_among_tasks(source: Path, folder: Path, draw: random.Random) -> int:
    """Three tasks of one attempt, two of them killed in the middle of their steps."""

    def task(at: int | None, when: str) -> None:
        Steps(at, when)
        help_out(source, folder, attempt)

    attempt = f"{draw.getrandbits(32):08x}"
    steps = [(draw.randint(1, 20), draw.choice(["before", "during", "after"])) for _ in range(2)]
    tasks = [fork(lambda step=step: task(*step)) for step in [*steps, (None, "")]]
    return sum(ended(pid) == -signal.SIGKILL for pid in tasks)


def survive(source: Path, whole: dict[str, str], place: Path, kills: int, seed: int) -> None:
    """Kill until ``kills`` have hit, starting on an empty folder now and then; after each what is committed is whole."""
    draw, folder, done = random.Random(seed), place / "light", 0
    while done < kills:
        way = draw.choice([killed_by_the_clock, killed_at_a_step, killed_at_a_step, killed_among_tasks])
        done += way(source, folder, draw)
        for path in folder.glob("*.tar"):
            record = read_committed(folder, path.stem)
            assert record is None or differences(*shard_files(folder, path.stem), record.written) == [], (way, seed)
        if (folder / "manifest.json").exists() or draw.random() < 0.2:
            build(source, folder)
            assert tree(folder) == whole, (way, seed)
            shutil.rmtree(folder)
    build(source, folder)
    assert tree(folder) == whole


def test_twenty_random_kills_change_nothing(source, whole, tmp_path):
    survive(source, whole, tmp_path, 20, seed=7)


@pytest.mark.soak
def test_two_hundred_random_kills_change_nothing(source, whole, tmp_path):
    survive(source, whole, tmp_path, 200, seed=random.SystemRandom().getrandbits(32))
