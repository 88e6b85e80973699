"""The two commands as a user types them: mistakes in one sentence, exit codes, status, verify."""

import os
import time
from pathlib import Path

import pytest

from data_prep.cocochorales import RECIPES
from data_prep.demo_cocochorales import render
from data_prep.engine import prepare
from data_prep.finish import finish
from tests.conftest import command

PREPARE = ("data_prep/prepare.py", "cocochorales")
DEMO = ("--recipe", "cocochorales_simple_demo")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    list(render(out, 6, 1, workers=1))
    return out


def mistake(*words: object, code: int = 2, **env: str) -> str:
    run = command(*words, env=env)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    lines = run.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), run.stderr
    return lines[-1]


def test_mistakes_are_one_sentence(corpus, tmp_path):
    assert "no dataset 'cocochorale'. Did you mean 'cocochorales'?" in mistake(
        "data_prep/prepare.py", "cocochorale", "--source", corpus
    )
    unknown = mistake(*PREPARE, "--recipe", "cocochorales_simpel", "--source", corpus)
    assert "Did you mean 'cocochorales_simple'? It has: cocochorales_simple, cocochorales_simple_demo, " in unknown
    assert "--source is missing" in mistake(*PREPARE)
    assert "is not a folder" in mistake(*PREPARE, "--source", tmp_path / "nowhere", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "is empty; expected main_dataset" in mistake(
        *PREPARE, "--source", tmp_path / "empty", "--out", tmp_path / "out"
    )
    assert "--workers -1" in mistake(*PREPARE, "--source", corpus, "--workers", -1)
    assert "--tasks 0 is not a number" in mistake(*PREPARE, "--source", corpus, "--cluster", "practice", "--tasks", 0)
    assert "--max-failures 7.0 is not a fraction" in mistake(*PREPARE, "--source", corpus, "--max-failures", 7)
    assert "holds no plan" in mistake(*PREPARE, "--status", "--out", tmp_path)
    assert "holds no prepared dataset" in mistake(*PREPARE, "--verify", "--out", tmp_path)
    assert "no demo corpus 'slack'. Did you mean 'slakh'? There are: cocochorales, slakh, " in mistake(
        "data_prep/demo.py", "slack", "--out", tmp_path
    )
    assert not (tmp_path / "out").exists()


def test_a_data_root_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written: Not a directory" in mistake(*PREPARE, "--source", corpus, "--out", tmp_path / "file")
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.geteuid():  # to root nothing is locked
        assert "cannot be written: Permission denied" in mistake(
            *PREPARE, "--source", corpus, "--out", tmp_path / "locked"
        )
    assert "cannot be written" in mistake(*PREPARE, "--source", corpus, "--out", "/proc/slurmphony")


def test_help_is_fast_and_imports_no_torch():
    for script in ("data_prep/prepare.py", "data_prep/demo.py"):
        start = time.monotonic()
        run = command("-X", "importtime", script, "--help")
        assert run.returncode == 0
        assert "torch" not in run.stderr
        assert time.monotonic() - start < 60, "an answer, not the work"


def test_a_bad_input_then_status_verify_repair(corpus, tmp_path):
    bad = next(corpus.glob("main_dataset/test/*/stems_audio/*.wav"))
    bad.write_bytes(b"not audio at all")
    folder = tmp_path / "cocochorales_simple_demo"
    stage = RECIPES[folder.name]
    finish(stage, prepare(stage, corpus, folder, 0, 0.05)[0], folder)
    made = command(*PREPARE, *DEMO, "--source", corpus, env={"SLURMPHONY_DATA": str(tmp_path)})
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(folder), "the last line on stdout is where the dataset lies"
    assert "complete already: 3 shards, every byte checked." in made.stderr
    assert f"1 of 6 inputs quarantined; the reasons are in {folder / 'quarantine.jsonl'}." in made.stderr
    assert "is not readable audio" in (folder / "quarantine.jsonl").read_text()
    suffixes = [".tar", ".npy", ".json"] * 3 + [".json", ".json", ".jsonl", ".md"]
    assert sorted(p.suffix for p in folder.iterdir()) == sorted(suffixes), "no temporary file remains"
    card = (folder / "README.md").read_text()
    assert "| train | violin |" in card
    assert "GNU GPL version 2" in card

    status = command(*PREPARE, *DEMO, "--status", "--out", tmp_path)
    assert "complete\n  3 of 3 shards, 6 of 6 inputs, 1 quarantined" in status.stdout
    assert command(*PREPARE, *DEMO, "--verify", "--out", tmp_path).returncode == 0
    path = folder / "valid-000000.tar"
    raw = path.read_bytes()
    path.write_bytes(raw[:5000] + b"!" + raw[5001:])
    verified = command(*PREPARE, *DEMO, "--verify", "--out", tmp_path)
    assert verified.returncode == 1
    assert "valid-000000.tar does not hold the bytes that were written" in verified.stderr
    assert "Traceback" not in verified.stderr
    repaired = command(*PREPARE, *DEMO, "--source", corpus, "--out", tmp_path, "--workers", 0)
    assert repaired.returncode == 0, repaired.stderr
    assert "1 of 3 shards built" in repaired.stderr
    assert path.read_bytes() == raw

    strict = command(*PREPARE, *DEMO, "--source", corpus, "--out", tmp_path, "--max-failures", 0)
    assert strict.returncode == 1
    assert "1 of 6 inputs are bad, at most 0 may be; stopped." in strict.stderr
    assert "Traceback" not in strict.stderr
