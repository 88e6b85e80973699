"""Judges, figures and audio of DisMix on a tiny prepared dataset and on the user's own files."""

import argparse

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from models.dismix import inputs
from models.dismix.evaluate import evaluate
from models.dismix.generate import add_arguments, generate
from models.dismix.judges import Recipe, rotation
from models.dismix.notation import mel_spec, note_name
from models.dismix.simple import generate as generation
from models.dismix.simple.judges import trained_judges
from models.dismix.simple.showing import held
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.models.helpers import build, info, load
from tests.pipeline.shard_factory import write_prepared

QUICK = Recipe(clips=64, width=16, latent=16, steps=5, batch=8)


def sample(number):
    random = np.random.default_rng(number)
    mel = lambda *lead: random.normal(-5.4, 2.2, (*lead, 128, 10)).astype(np.float32)  # noqa: E731
    instruments = random.permutation(4)[:2].astype(np.int64)
    return {
        "mixture": mel(), "sources": mel(2), "queries": mel(2, 2), "instrument": instruments,
        "pitch": random.integers(48, 73, 2), "meta": {"track": f"track{number}"},
    }  # fmt: skip


def write_clips(folder):
    return write_prepared(folder, {"train": [4], "valid": [9], "test": [3, 4]}, sample, info("dismix_demo"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def module():
    return build(load("dismix_demo")).eval()


@pytest.fixture(autouse=True)
def few_griffin_lim_iterations(monkeypatch):
    from models import showing

    monkeypatch.setattr(showing, "waveform", lambda mel, spec: waveform(mel, spec, iterations=2))
    from models.features import waveform


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(w) for w in words])


def tone(path, seconds=0.5, rate=44100, channels=2, hertz=440.0):
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 5)) * 0.1
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path


def test_figures_have_the_papers_names_and_intervals(module, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "models.dismix.simple.evaluate.trained_judges", lambda manifest, out: trained_judges(manifest, out, QUICK)
    )
    figures = evaluate(module, data, tmp_path)
    shares = {"single_pitch", "single_instrument", "mixture_pitch", "mixture_instrument", "transcription"}
    assert figures.keys() == shares | {
        "source_error_db",
        "mixture_error_db",
        "judge_pitch_on_clean",
        "judge_instrument_on_clean",
    }
    for name, figure in figures.items():
        assert figure["low"] <= figure["value"] <= figure["high"], name
        assert figure["count"] == (7 if name == "mixture_error_db" else 14)
    assert (tmp_path / "timbre_space.png").stat().st_size > 1000


def test_judges_are_seeded_kept_and_taken_again(data, tmp_path):
    manifest = read_manifest(data)
    first = trained_judges(manifest, tmp_path / "a", QUICK)
    (file,) = (tmp_path / "a").iterdir()
    second = trained_judges(manifest, tmp_path / "b", QUICK)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    load_file(file)
    file.write_bytes((tmp_path / "b" / file.name).read_bytes())
    before = file.stat().st_mtime_ns
    trained_judges(manifest, tmp_path / "a", QUICK)
    assert file.stat().st_mtime_ns == before
    trained_judges(manifest, tmp_path / "a", Recipe(clips=64, width=16, latent=16, steps=6, batch=8))
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_rotation_moves_every_source_and_belongs_to_the_sample():
    positions = torch.arange(50)
    for sources in (2, 4):
        origin = rotation(positions, sources)
        assert torch.equal(origin.sort(1).values, torch.arange(sources).expand(50, -1))
        assert not (origin == torch.arange(sources)).any()
        assert torch.equal(origin[20:30], rotation(positions[20:30], sources))


def test_a_sample_of_the_held_out_split_is_swapped(module, data, tmp_path):
    files = generate(module, arguments("--sample", 5, "--swap-timbre", 0, 1), data, tmp_path)
    names = {path.name for path in files}
    assert {"swap.png", "before.wav", "after.wav", "after_source_0.wav", "after_held.wav"} <= names
    audio, rate = soundfile.read(tmp_path / "after.wav")
    assert rate == 16000 and len(audio) == 5120 and np.isfinite(audio).all()
    assert len(soundfile.read(tmp_path / "after_held.wav")[0]) == pytest.approx(2 * 16000, abs=512)


def test_own_recordings_of_any_rate_and_length(module, data, tmp_path):
    mix = tone(tmp_path / "mix.wav", seconds=1.7)
    queries = [tone(tmp_path / "horn.flac", rate=48000, channels=1), tone(tmp_path / "reed.wav", rate=8000)]
    files = generate(module, arguments("--mix", mix, "--query", *queries, "--swap-pitch", 0, 1), data, tmp_path / "out")
    assert "after_held.wav" not in {path.name for path in files}
    audio, rate = soundfile.read(tmp_path / "out" / "after.wav")
    assert rate == 16000 and len(audio) / rate == pytest.approx(1.7, abs=0.04)


def test_what_is_not_swapped_is_rendered_as_before(module, data):
    given = inputs._sample(2, data, 10, 10)
    latents = module.model.encode(module.standardise(given.windows), module.standardise(given.queries)[None])
    rendered = generation._render(module, given, latents.timbre, latents.pitch)
    sources, mixture = module.model.render(latents.timbre, latents.pitch, 10)
    torch.testing.assert_close(rendered[0], module.log_mel(mixture)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rendered[1:], module.log_mel(sources)[0], rtol=1e-4, atol=1e-4)


def wrong(tmp_path):
    """(words, what the sentence says)"""
    good, other = tone(tmp_path / "good.wav"), tone(tmp_path / "other.wav")
    short = tone(tmp_path / "short.wav", seconds=0.1)
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    swap = ("--swap-timbre", 0, 1)
    return [
        (("--sample", 0), "say what to swap"),
        (("--sample", 7, *swap), r"0\.\.6"),
        (("--sample", 0, "--swap-pitch", 0, 2), r"0\.\.1"),
        (("--sample", 0, "--swap-pitch", 1, 1), "two different"),
        (("--mix", good, *swap), "--query"),
        (("--mix", good, "--query", other, *swap), "each instrument"),
        (("--sample", 0, "--mix", good, "--query", good, other, *swap), "use one of them"),
        (("--mix", tmp_path / "none.wav", "--query", good, other, *swap), "not there"),
        (("--mix", tmp_path / "text.wav", "--query", good, other, *swap), "not audio"),
        (("--sample", 0, "--only", 1), "LDM case"),
        (("--mix", short, "--query", good, other, *swap), "at least 0.32 s"),
        (("--mix", good, "--query", good, tmp_path / "silence.wav", *swap), "silent"),
    ]


def test_wrong_inputs_are_told_in_one_sentence(module, data, tmp_path):
    for words, says in wrong(tmp_path):
        with pytest.raises(UserError, match=says) as caught:
            generate(module, arguments(*words), data, tmp_path / "out")
        assert "\n" not in str(caught.value)


def test_holding_goes_back_and_forth_and_notes_have_names():
    spec = mel_spec(info("dismix_demo"))
    frames = held(torch.arange(4.0)[None].expand(128, -1), spec)[0]
    assert frames[:9].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2] and len(frames) * 512 == pytest.approx(32000, abs=512)
    assert [note_name(n) for n in (60, 69, 48)] == ["C4", "A4", "C3"]
