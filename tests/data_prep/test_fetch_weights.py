"""Weights arrive whole or not at all, from servers that cut, lie, ignore and redirect; and the command's own mistakes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import download as downloads
from data_prep.fetch_weights import fetch
from models.codecs.weights import checked_weights, find_weights
from pipeline.errors import RunFailed, UserError
from tests.conftest import ROOT, command
from tests.data_prep.hostile_server import Behaviour, serve

BODY = random.Random(0).randbytes(3_000_000)
NAME, FILE = "cnn14", "Cnn14_mAP=0.431.pth"
SCRIPT = "data_prep/fetch_weights.py"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF", 0.0)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """What a server or a folder offers: one file of cnn14, four of audioldm2, one that is not EnCodec."""
    root = tmp_path_factory.mktemp("published")
    for name in (f"{NAME}/{FILE}", "encodec/encodec_24khz-d7cc33bc.th"):
        (root / name).parent.mkdir()
        (root / name).write_bytes(BODY)
    for part, weights in (("vae", "diffusion_pytorch_model.safetensors"), ("vocoder", "model.safetensors")):
        (root / "audioldm2" / part).mkdir(parents=True)
        (root / "audioldm2" / part / "config.json").write_text("{}")
        (root / "audioldm2" / part / weights).write_bytes(BODY[: 1000 * len(part)])
    return root


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != ".lock")


def test_what_arrives_is_what_was_sent(published, tmp_path):
    behaviour = Behaviour(claim=True)
    with serve(published, behaviour) as base:
        fetch("audioldm2", tmp_path, base)
        weights = checked_weights("audioldm2", tmp_path)
        assert files(tmp_path) == sorted(["audioldm2/manifest.json", *(f"audioldm2/{f.path}" for f in weights.files)])
        for file in weights.files:
            assert (tmp_path / "audioldm2" / file.path).read_bytes() == (
                published / "audioldm2" / file.path
            ).read_bytes()
            assert file.said_by == "the server's word"
            assert file.url == f"{base}/audioldm2/{file.path}"
        asked = len(behaviour.requests)
        fetch("audioldm2", tmp_path, base)
        assert len(behaviour.requests) == asked == 4, "what is intact is not asked for again"
        (tmp_path / "audioldm2/vae/config.json").write_text("[]")
        fetch("audioldm2", tmp_path, base)
        assert behaviour.requests[4:] == [("/audioldm2/vae/config.json", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_taken_up_where_it_broke(published, tmp_path, ranges):
    behaviour = Behaviour(cuts=[10 << 16, 7 << 16, 0], ranges=ranges, busy=1)
    with serve(published, behaviour) as base:
        fetch(NAME, tmp_path, base)
    assert (tmp_path / NAME / FILE).read_bytes() == BODY
    asked = [range_ for _, range_ in behaviour.requests]
    assert asked[:3] == [None, None, f"bytes={10 << 16}-"], "busy, cut, then the rest"
    assert asked[3] == (f"bytes={17 << 16}-" if ranges else f"bytes={7 << 16}-")
    assert files(tmp_path) == [f"{NAME}/{FILE}", f"{NAME}/manifest.json"]
    assert find_weights(NAME, tmp_path).files[0].said_by == "nobody: the first one seen"


def test_too_many_cuts_end_in_a_sentence_and_the_next_command_goes_on(published, tmp_path):
    behaviour = Behaviour(cuts=[3 << 16] * downloads.ATTEMPTS)
    with serve(published, behaviour) as base:
        with pytest.raises(
            RunFailed, match=rf"was cut off 6 times .*; {18 << 16} bytes are here, and the same command goes on"
        ):
            fetch(NAME, tmp_path, base)
        assert files(tmp_path) == [f"{NAME}/{FILE}.part", f"{NAME}/{FILE}.part.etag"]
        with pytest.raises(UserError, match="does not hold them"):
            checked_weights(NAME, tmp_path)
        fetch(NAME, tmp_path, base)
    assert behaviour.requests[-1][1] == f"bytes={18 << 16}-"
    assert (tmp_path / NAME / FILE).read_bytes() == BODY


@pytest.mark.parametrize("tag", ['"two"', 'W/"two"', None])
def test_two_versions_are_never_glued(published, tmp_path, tag):
    part = tmp_path / NAME / f"{FILE}.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    part.with_name(f"{part.name}.etag").write_text('"one"')
    with serve(published, Behaviour(tag=tag)) as base:
        fetch(NAME, tmp_path, base)
    assert (tmp_path / NAME / FILE).read_bytes() == BODY


def test_without_a_strong_tag_nothing_is_resumed(published, tmp_path):
    behaviour = Behaviour(tag='W/"one"', cuts=[10 << 16])
    with serve(published, behaviour) as base:
        fetch(NAME, tmp_path, base)
    assert [range_ for _, range_ in behaviour.requests] == [None, None]
    assert (tmp_path / NAME / FILE).read_bytes() == BODY


def test_a_partial_file_that_is_whole_or_too_long(published, tmp_path):
    part = tmp_path / NAME / f"{FILE}.part"
    part.parent.mkdir()
    for have, asked in ((BODY, 1), (BODY + b"more", 2)):
        part.write_bytes(have)
        part.with_name(f"{part.name}.etag").write_text('"one"')
        behaviour = Behaviour()
        with serve(published, behaviour) as base:
            fetch(NAME, tmp_path, base)
        assert len(behaviour.requests) == asked
        assert (tmp_path / NAME / FILE).read_bytes() == BODY
        (tmp_path / NAME / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("name", "claim", "who"), [("encodec", False, "the publisher's file name"), (NAME, True, "the server's word")]
)
def test_a_wrong_byte_is_refused_and_removed(published, tmp_path, name, claim, who):
    with serve(published, Behaviour(flip=2_000_000, claim=claim)) as base, pytest.raises(RunFailed, match=who):
        fetch(name, tmp_path, base)
    assert files(tmp_path) == []


def test_what_came_first_is_what_must_come_again(published, tmp_path):
    behaviour = Behaviour()
    with serve(published, behaviour) as base:
        fetch(NAME, tmp_path, base)
        (tmp_path / NAME / FILE).write_bytes(b"damaged on this disk")
        behaviour.flip = 5
        with pytest.raises(RunFailed, match=r"an earlier fetch .* to accept that, remove .*manifest\.json"):
            fetch(NAME, tmp_path, base)
        behaviour.flip = None
        fetch(NAME, tmp_path, base)
    assert checked_weights(NAME, tmp_path).path(FILE).read_bytes() == BODY


@pytest.mark.parametrize("where", ["http://example.org/weights", "ftp://example.org/weights", "file:///etc/hostname"])
def test_no_redirect_to_another_scheme_is_followed(published, tmp_path, where):
    with (
        serve(published, Behaviour(redirect=where)) as base,
        pytest.raises(UserError, match="not https, and was not followed"),
    ):
        fetch(NAME, tmp_path, base)


def test_what_is_too_large_or_endless_is_refused(published, tmp_path, monkeypatch):
    with (
        serve(published, Behaviour(no_length=True)) as base,
        pytest.raises(RunFailed, match="does not say how long it is"),
    ):
        fetch(NAME, tmp_path, base)
    (tmp_path / "large/audioldm2/vae").mkdir(parents=True)
    (tmp_path / "large/audioldm2/vae/config.json").write_bytes(BODY)
    with serve(tmp_path / "large", Behaviour()) as base, pytest.raises(RunFailed, match="is larger than 1000000 bytes"):
        fetch("audioldm2", tmp_path / "out", base)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with (
        serve(published, Behaviour()) as base,
        pytest.raises(RunFailed, match="10 bytes free, and 3000000 are to come"),
    ):
        fetch(NAME, tmp_path / "out", base)


def test_a_kill_in_the_middle_and_a_second_fetch_meanwhile(published, tmp_path):
    behaviour = Behaviour(delay=0.05)
    line = [sys.executable, SCRIPT, NAME, "--out", str(tmp_path)]
    with serve(published, behaviour) as base:
        process = subprocess.Popen([*line, "--source", base], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        part = tmp_path / NAME / f"{FILE}.part"
        while (not part.exists() or part.stat().st_size < 1 << 20) and process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(UserError, match="another fetch is at work"):
            fetch(NAME, tmp_path, base)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        have, behaviour.delay = part.stat().st_size, 0.0
        assert 0 < have < len(BODY)
        fetch(NAME, tmp_path, base)
    assert behaviour.requests[-1][1] == f"bytes={have}-"
    assert (tmp_path / NAME / FILE).read_bytes() == BODY


def test_from_a_folder_then_verify_then_list(published, tmp_path):
    fetch(NAME, tmp_path / "first", str(published))
    made = command(SCRIPT, NAME, "--out", tmp_path / "second", "--source", tmp_path / "first")
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(tmp_path / "second" / NAME)
    assert "as said by the source's manifest" in made.stderr
    assert f"export SLURMPHONY_WEIGHTS={tmp_path / 'second'}" in made.stderr
    manifest = json.loads((tmp_path / "second" / NAME / "manifest.json").read_text())
    assert manifest["licence"] == "PANNs CNN14, Kong et al.: CC BY 4.0."
    assert command(SCRIPT, "--out", tmp_path / "second", "--verify").returncode == 0
    (tmp_path / "first" / NAME / FILE).write_bytes(BODY[:-1] + b"!")
    with pytest.raises(RunFailed, match="the source's manifest"):
        fetch(NAME, tmp_path / "third", str(tmp_path / "first"))
    wrong = command(SCRIPT, "--verify", env={"SLURMPHONY_WEIGHTS": str(tmp_path / "first")})
    assert wrong.returncode == 1
    assert "does not hold the bytes that were fetched" in wrong.stderr
    listed = command(SCRIPT, "--list", "--out", tmp_path / "second", env={"COLUMNS": "160"})
    assert listed.returncode == 0
    assert "music2latent" in listed.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["encodek", "--out", "x"], "no weights 'encodek'. Did you mean 'encodec'? There are: encodec, music2latent"),
        (["encodec"], "--out is missing"),
        (["--out", "x"], "say which weights: encodec"),
        (["encodec", "--out", "x", "--source", "nowhere"], "--source nowhere has no folder encodec"),
        (
            ["encodec", "--out", "x", "--source", "http://example.org"],
            "neither a folder, nor https, nor http://127.0.0.1",
        ),
        (["encodec", "--out", "x", "--source", "http://127.0.0.1.example.org:80"], "neither a folder"),
        (["--out", "x", "--verify"], "x holds no weights"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("SLURMPHONY_WEIGHTS", None)
    run = subprocess.run(
        [sys.executable, str(ROOT / SCRIPT), *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("error: ") and sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nobody_there(tmp_path):
    with pytest.raises(RunFailed, match="cannot be fetched"):
        fetch(NAME, tmp_path, "http://127.0.0.1:9")
    with serve(tmp_path, Behaviour()) as base, pytest.raises(RunFailed, match="404"):
        fetch(NAME, tmp_path, base)
