"""The second stage: the codec's own numbers, in the source's order, the same bytes whoever computes them; exact statistics."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.engine import prepare
from data_prep.finish import finish, verify
from data_prep.latents import latent_stage
from data_prep.plan import shard_key
from models.codecs import load_codec
from models.codecs.standardisation import Standardisation
from models.codecs.weights import Weights
from pipeline.errors import UserError
from pipeline.loader import Loader
from pipeline.manifest import SPLITS, read_manifest
from pipeline.samples import SplitReader
from tests.data_prep.light_stage import write_source
from tests.data_prep.tone_stage import RECIPES
from tests.models.stand_in_weights import LICENCE, write_encodec

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "tests/data_prep/run_tones.py", "tones")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def tree(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def run(*words: object) -> subprocess.CompletedProcess[str]:
    line = [*COMMAND, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def encode(folder: Path, codec: str) -> Path:
    stage, out = latent_stage(folder, codec), folder.with_name(f"{folder.name}-{codec}")
    finish(stage, prepare(stage, folder, out, 0, 0.05)[0], out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with the tones' recipes."""
    root = tmp_path_factory.mktemp("data")
    source = write_source(root / "raw")
    for name, stage in RECIPES.items():
        finish(stage, prepare(stage, source, root / name, 0, 0.05)[0], root / name)
    return root


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """Latents made in one go, in this process."""
    return encode(data / "tones", "mdct")


def test_latents_are_the_codecs_and_stand_in_the_sources_order(data, whole):
    codec = load_codec("mdct", sample_rate=44100)
    before, after = read_manifest(data / "tones"), read_manifest(whole)
    assert [s.name for s in after.shards] == [s.name for s in before.shards]
    assert (after.dataset, after.recipe, after.codec) == ("tones", "tones", "mdct")
    for split in SPLITS:
        audio, latents = SplitReader(before, split), SplitReader(after, split)
        assert len(audio) == len(latents) > 0
        for number in range(len(audio)):
            was, now = audio.sample(number), latents.sample(number)
            stems = torch.from_numpy(was.pop("stems")).float() / 32768
            latent = now.pop("stems_latent")
            assert (latent.dtype, latent.shape) == (np.float16, (2, 64, 8))
            torch.testing.assert_close(torch.from_numpy(latent).float(), codec.encode(stems), rtol=1e-3, atol=1e-6)
            np.testing.assert_array_equal(was.pop("present"), now.pop("present"))
            assert was == now, "key and meta are carried over, the waveform is left behind"
    assert verify(whole)[1] == []
    assert "--recipe tones --codec mdct" in (whole / "README.md").read_text()
    assert "| stems_latent | 2 x 64 x 8 |" in (whole / "README.md").read_text()


def test_statistics_are_exact_and_standardise(data, whole):
    manifest = read_manifest(whole)
    train = SplitReader(manifest, "train")
    latents = np.stack([train.sample(i)["stems_latent"] for i in range(len(train))]).astype(np.float64)
    facts = manifest.info["latent"]["fields"]["stems_latent"]
    np.testing.assert_allclose(facts["mean"], latents.mean((0, 3)), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(facts["std"], latents.std((0, 3)), rtol=1e-6)
    standardise = Standardisation.from_info(manifest.info, "stems_latent")
    with Loader(manifest, "train", batch_size=len(train)) as loader:
        standard = standardise.apply(next(iter(loader))["stems_latent"])
    assert standard.mean((0, 3)).abs().max() < 1e-3
    torch.testing.assert_close(standard.std((0, 3), correction=0), torch.ones(2, 64), rtol=1e-3, atol=0)
    assert {k: v for k, v in manifest.info["latent"].items() if k != "fields"} == {
        "codec": "mdct",
        "sample_rate": 44100,
        "hop": 512,
        "channels": 64,
        "weights_hash": None,
        "computed_on": ["cpu"],
        "source": read_manifest(data / "tones").identity,
    }


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_two_workers_from_the_command_line_and_kills_give_the_same_bytes(data, whole, tmp_path, kills):
    out = tmp_path / "tones-mdct"
    shutil.copytree(data / "tones", tmp_path / "tones")
    line = [*COMMAND, "--codec", "mdct", "--out", str(tmp_path), "--workers", "2"]
    for kill in range(kills):
        process = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)
        while len(list(out.glob("*-0*.tar"))) <= kill % 4 and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert kill or not (out / "manifest.json").exists(), "killed at work"
        for name in (f"train-00000{kill % 3}.tar", "manifest.json") if kill % 4 == 3 else ():
            (out / name).unlink(missing_ok=True)  # so that there is work again
    made = run("--codec", "mdct", "--out", tmp_path, "--workers", 2)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(out)
    assert tree(out) == tree(whole)
    assert not (out / ".work").exists()


def test_source_and_codec_in_one_command(data, whole, tmp_path):
    made = run("--source", data / "raw", "--codec", "mdct", "--out", tmp_path, "--workers", 0)
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == [str(tmp_path / "tones"), str(tmp_path / "tones-mdct")]
    assert tree(tmp_path / "tones-mdct") == tree(whole)
    status = run("--codec", "mdct", "--out", tmp_path, "--status")
    assert f"{tmp_path / 'tones-mdct'}: complete" in status.stdout
    assert run("--codec", "mdct", "--out", tmp_path, "--verify").returncode == 0


def test_mels_are_encoded_beside_themselves(data):
    codec = load_codec("meldct")
    out = read_manifest(encode(data / "tones_mel", "meldct"))
    sample = SplitReader(out, "train").sample(0)
    assert sample["stems_latent"].shape == (2, 8, 10, 16)
    expected = codec.encode_mel(torch.from_numpy(sample["stems"]))
    torch.testing.assert_close(torch.from_numpy(sample["stems_latent"]).float(), expected, rtol=1e-3, atol=1e-4)
    facts = out.info["latent"]["fields"]["stems_latent"]
    assert np.array(facts["mean"]).shape == (2, 8)
    assert Standardisation.from_info(out.info, "stems_latent").mean.shape == (2, 8, 1, 1)


def test_weights_decide_the_key_and_are_named_on_the_card(data, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMPHONY_WEIGHTS", str(write_encodec(tmp_path)))
    stage, out = latent_stage(data / "tones_24k", "encodec"), data / "tones_24k-encodec"
    monkeypatch.delenv("SLURMPHONY_WEIGHTS")  # a worker elsewhere may not have it: the plan knows
    finish(stage, prepare(stage, data / "tones_24k", out, 0, 0.05)[0], out)
    manifest = read_manifest(out)
    assert manifest.info["latent"]["weights_hash"] == stage.codec_hash
    assert SplitReader(manifest, "train").sample(0)["stems_latent"].shape == (2, 128, 13)
    card = (out / "README.md").read_text()
    assert f"The codec's weights: {LICENCE}" in card
    assert str(stage.codec_hash) in card
    plan, built = prepare(stage, data / "tones_24k", out, 0, 0.05)
    assert built == 0
    assert stage.weights is not None
    other = Weights(stage.weights.folder, stage.weights.licence, stage.weights.files * 2)
    shard = plan.shards[0]
    assert shard_key(stage, plan.code, shard.inputs) == shard.key
    assert shard_key(replace(stage, weights=other), plan.code, shard.inputs) != shard.key


def test_a_damaged_source_shard_is_quarantined_by_name(data, tmp_path):
    shutil.copytree(data / "tones", tmp_path / "tones")
    path = tmp_path / "tones/valid-000000.tar"
    raw = path.read_bytes()
    path.write_bytes(raw[:9000] + bytes([raw[9000] ^ 1]) + raw[9001:])
    out = encode(tmp_path / "tones", "mdct")
    entry = json.loads((out / "quarantine.jsonl").read_text())
    assert entry["input"] == "valid-000000"
    assert "its sample 0 is not what was written" in entry["reason"]


def test_mistakes_are_one_sentence(data, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURMPHONY_WEIGHTS", raising=False)
    with pytest.raises(
        UserError, match="encodec works at 24000 Hz, this is audio of 44100 Hz; codecs for that: mdct, music"
    ):
        latent_stage(data / "tones", "encodec")
    with pytest.raises(UserError, match=r"fetch_weights\.py music2latent --out DIR"):
        latent_stage(data / "tones", "music2latent")
    mels = read_manifest(data / "tones_mel")
    for name in ("hop", "window", "f_max"):
        other = replace(mels, info={**mels.info, "mel": {**mels.info["mel"], name: 17}})
        monkeypatch.setattr("data_prep.latents.read_manifest", lambda _, other=other: other)
        with pytest.raises(UserError, match=f"meldct needs mels with {name} .*, those of tones_mel have 17"):
            latent_stage(data / "tones_mel", "meldct")
    monkeypatch.undo()
    unknown = run("--codec", "mdkt", "--out", data)
    assert unknown.returncode == 2
    assert "no codec 'mdkt'. Did you mean 'mdct'?" in unknown.stderr
    missing = run("--recipe", "tones_24k", "--codec", "mdct", "--out", tmp_path)
    assert missing.returncode == 2
    assert "make both with: python data_prep/prepare.py tones --recipe tones_24k --codec mdct" in missing.stderr
    assert not list(tmp_path.iterdir())
    nothing = run("--recipe", "tones_mel", "--codec", "mdct", "--out", data)
    assert (nothing.returncode, "mdct works at 44100 or 24000 Hz, this is audio of 16000 Hz" in nothing.stderr) == (
        2,
        True,
    )
