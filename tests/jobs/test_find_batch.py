"""How many samples a process can hold at once."""

import re

import pytest

from jobs import find_batch
from jobs.configs import load_named
from jobs.find_batch import Trial
from pipeline.errors import RunFailed
from tests.conftest import command


def trial(size: int, peak: int, seconds: float) -> Trial:
    return Trial(size, peak, limit=950, seconds=seconds, device="CPU")


def test_it_tries_real_steps_and_says_what_to_set():
    small = ["model.simple.width=16", "model.simple.gru=8", "model.barlow_twins_group=8", "data.batch_size=32"]
    words = [word for change in small for word in ("--set", change)]
    done = command("jobs/launch.py", "dismix_demo", "--find-batch", "--gpus", "2", *words)
    assert done.returncode == 0, done.stderr
    sizes = [int(n) for n in re.findall(r"│ +(\d+) +│ +[\d.]+ GB", done.stdout)]
    assert sizes == [8, 16], "the Barlow Twins group is the smallest batch, a process's share the largest"
    assert "share of the batch is 16" in done.stdout
    assert "--set trainer.micro_batch=8" in done.stdout or "micro_batch is not needed" in done.stdout


@pytest.fixture
def tries(monkeypatch):
    """Trials without processes: 100 bytes fixed and 50 a sample; what is past 700 bytes does not fit."""
    asked = []

    def one(config, folder, size):
        asked.append(size)
        peak = 100 + 50 * size
        return trial(size, peak, 0.1 + 0.01 * size) if peak <= 700 else None

    monkeypatch.setattr(find_batch, "_try", one)
    return asked


def test_it_stops_where_the_next_would_not_fit(tries):
    found = find_batch.find(load_named("dismix_demo"), None, 1)
    assert [t.size for t in found] == [1, 2, 4, 8]
    assert tries == [1, 2, 4, 8], (
        "16 samples would need 900 of 950 bytes, of which a tenth is to be spare: not even tried"
    )


def test_a_size_that_does_not_fit_ends_it(tries, monkeypatch):
    monkeypatch.setattr(find_batch, "_foreseen", lambda done, size: 0.0)
    assert [t.size for t in find_batch.find(load_named("dismix_demo"), None, 1)] == [1, 2, 4, 8]
    assert tries == [1, 2, 4, 8, 16]


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(find_batch, "_try", lambda *_: None)
    with pytest.raises(RunFailed, match="not even the smallest batch fits; take a smaller model"):
        find_batch.find(load_named("dismix_demo"), None, 1)


def test_it_goes_with_a_configs_name():
    done = command("jobs/launch.py", "--resume", "dismix_demo", "--find-batch")
    assert done.returncode == 2 and "--find-batch goes with a config's name" in done.stderr
