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
    assert sizes == [8, 16, 16], "the Barlow Twins group is the smallest batch, a process's share the largest"
    assert done.stdout.count("kept") == 2 and done.stdout.count("computed again") == 1
    assert "--set trainer.activation_checkpointing=true 16 fit: 16 take 0." in done.stdout
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


def test_it_goes_on_with_activations_computed_again_from_the_largest_that_fits_without(monkeypatch, capsys):
    tried = []

    def one(config, folder, size):
        again = config.trainer.activation_checkpointing
        tried.append((size, again))
        return trial(size, 100 + (10 if again else 100) * size, 0.01 * size * (1.25 if again else 1.0))

    monkeypatch.setattr(find_batch, "_try", one)
    config = load_named("dismix_demo")
    kept = find_batch.find(config, None, 1)
    sparing = find_batch.find_sparing(config, None, 1, kept)
    assert tried == [(1, False), (2, False), (4, False), (4, True), (8, True), (16, True), (32, True), (64, True)]
    said = list(find_batch.advice(kept, sparing, 64))
    assert said[2] == (
        "With --set trainer.activation_checkpointing=true 64 fit: 4 take 0.00 GB in place of 0.00, at 0.80 of the rate."
    )
    assert said[3] == "--set trainer.micro_batch=1"
    asked = load_named("dismix_demo", ["trainer.activation_checkpointing=true"])
    assert find_batch.find_sparing(asked, None, 1, kept) == []
    monkeypatch.setattr(find_batch, "_try", lambda *_: None)
    assert find_batch.find_sparing(config, None, 1, kept) == [] and "not even the smallest" in capsys.readouterr().err
    assert not [s for s in find_batch.advice(kept, [], 64) if "checkpointing" in s]


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(find_batch, "_try", lambda *_: None)
    with pytest.raises(RunFailed, match="not even the smallest batch fits; take a smaller model"):
        find_batch.find(load_named("dismix_demo"), None, 1)


def test_it_goes_with_a_configs_name():
    done = command("jobs/launch.py", "--resume", "dismix_demo", "--find-batch")
    assert done.returncode == 2 and "--find-batch goes with a config's name" in done.stderr
