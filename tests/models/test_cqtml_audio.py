"""What CQTML's commands write of a song, a pair and a split, and what they say to inputs that cannot be used."""

import argparse
import csv

import numpy as np
import pytest
import soundfile
import torch

from models.cqtml import api
from models.cqtml.generator import evaluate as generator_evaluation
from models.cqtml.generator.generate import add_arguments, generate
from models.cqtml.pairs import verdict
from models.cqtml.policy import evaluate as policy_evaluation
from models.cqtml.reward import evaluate as reward_evaluation
from models.cqtml.reward import generate as scoring
from models.features import CQT
from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.runs import RunFolder
from pipeline.train_module import TrainModule
from tests.models.cqtml_data import BODY, facts, segment, song, write_songs
from tests.models.helpers import load
from tests.pipeline.shard_factory import write_dataset

TINY = [f"model.body.{name}={value}" for name, value in BODY.items()]


def made(name: str, *changes: str, info=None) -> TrainModule:
    torch.manual_seed(0)
    config = load(name, *changes)
    return api.module_class(config.model)(config, info or facts()).eval()


@pytest.fixture(scope="module")
def module():
    return made("cqtml_demo", *TINY)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return write_songs(tmp_path_factory.mktemp("songs"), {"train": [2], "valid": [2], "test": [3, 2]})


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "song.wav"
    whole = np.concatenate([song(i) for i in range(3)])
    soundfile.write(path, np.stack([whole, whole], 1), CQT.sample_rate)
    return path


def arguments(add, *words):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args([str(word) for word in words])


def test_a_song_becomes_tables_a_picture_and_sound(module, wav, tmp_path):
    args = arguments(add_arguments, "--input", wav, "--fps", 25, "--universe", 3, "--channel", 509)
    files = generate(module, args, tmp_path, tmp_path / "out")
    assert {p.name for p in files} == {"music.wav", "lights.npz", "lights.csv", "dmx.csv", "lights.png", "lights.html"}
    with np.load(tmp_path / "out/lights.npz") as arrays:
        curves = arrays["brightness"]
        assert float(arrays["fps"]) == 25 and curves.shape == (4, 28) and curves.min() >= 0 and curves.max() <= 1
    rows = list(csv.DictReader((tmp_path / "out/lights.csv").open()))
    assert len(rows) == 28 and float(rows[25]["seconds"]) == 1.0
    assert abs(float(rows[7]["light_3"]) - curves[2, 7]) < 1e-4
    desk = list(csv.DictReader((tmp_path / "out/dmx.csv").open()))
    assert [row["channel"] for row in desk[:4]] == ["509", "510", "511", "512"] and {
        row["universe"] for row in desk
    } == {"3"}
    assert int(desk[4 * 7 + 2]["value"]) == round(255 * float(curves[2, 7])) and desk[4 * 7]["frame"] == "7"
    audio, rate = soundfile.read(tmp_path / "out/music.wav")
    assert rate == 22050 and len(audio) == 3 * 8128
    again = generate(module, args, tmp_path, tmp_path / "again")
    assert [p.read_bytes() for p in files if p.suffix == ".csv"] == [
        p.read_bytes() for p in again if p.suffix == ".csv"
    ]


def test_several_draws_have_numbers_and_differ(module, wav, tmp_path):
    args = arguments(add_arguments, "--input", wav, "--temperature", 1.5, "--samples", 2)
    files = {p.name for p in generate(module, args, tmp_path, tmp_path)}
    assert {"lights_1.npz", "lights_2.npz", "dmx_2.csv"} < files
    one, other = (np.load(tmp_path / f"lights_{n}.npz")["brightness"] for n in (1, 2))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--fps", "0.5"], "--fps 0.5 is not a frame rate"),
        (["--universe", "40000"], "Art-Net has 0 to 32767"),
        (["--channel", "510"], "leaves no room for 4 lights; give 1 to 509"),
        (["--temperature", "0"], "give more than 0"),
        (["--samples", "3"], "say at which --temperature"),
        (["--samples", "0", "--temperature", "1"], "give 1 or more"),
        (["--dropout", "--temperature", "1"], "trained without dropout"),
        (["--sample", "99"], "the held-out split of .* has the samples 0..4"),
        (["--input", "nowhere.wav"], "is not there"),
    ],
)
def test_what_cannot_be_is_one_sentence(module, songs, tmp_path, words, told):
    with pytest.raises(UserError, match=told):
        generate(module, arguments(add_arguments, *words), songs.folder, tmp_path)


def test_silence_and_nonsense_are_errors_and_never_zeros(module, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(22050), 22050)
    with pytest.raises(UserError, match="silent"):
        generate(module, arguments(add_arguments, "--input", tmp_path / "silence.wav"), tmp_path, tmp_path)
    with pytest.raises(ValueError, match="finite numbers"):
        api.listen(np.full(1000, np.nan, np.float32))


def test_figures_of_a_generator(module, songs, tmp_path):
    figures = generator_evaluation.evaluate(module, songs.folder, tmp_path)
    assert {
        "model_onset_correlation",
        "model_onset_correlation_shuffled",
        "model_onset_correlation_gain",
        "locality",
    } < set(figures)
    assert figures["diversity_at_2"]["value"] >= figures["diversity_at_0.25"]["value"] > 0
    assert (tmp_path / "segment_0.png").is_file() and figures["locality"]["count"] == 5


def test_figures_of_a_policy_that_is_still_its_start(songs, tmp_path):
    policy = made("cqtml_demo_policy", *TINY, "model.reward_model.width=16", "model.grpo.group=3")
    figures = policy_evaluation.evaluate(policy, songs.folder, tmp_path)
    assert figures["win_rate_drawn"]["count"] == 15 and figures["kl"]["value"] == 0
    assert figures["reward_gain"]["value"] == 0 and figures["diversity_kept"] == 1 and figures["reward_hacking"] == 0
    assert (tmp_path / "lights.png").is_file()


def comparison(number):
    sample = segment(number)
    lights = np.random.default_rng(number).random((2, 4, 1)).repeat(128, 2).astype(np.float16)
    choice = 0.5 if number == 0 else float(lights[0].mean() > lights[1].mean())
    votes = {"choice": np.asarray(choice, np.float32), "votes": np.asarray(1)}
    return {"cqt": sample["cqt"].astype(np.float16), "a": lights[0], "b": lights[1], **votes}


def test_figures_of_a_reward_leave_ties_out_and_are_consistent(tmp_path):
    manifest = write_dataset(tmp_path / "comparisons", [6], "test", comparison)
    reward = made("cqtml_demo_reward", "model.reward_model.width=16")
    figures = reward_evaluation.evaluate(reward, manifest.folder, tmp_path)
    assert figures["pair_accuracy"]["count"] == 5 and figures["ties"] == pytest.approx(1 / 6)
    assert figures["swap_consistency"]["value"] == 1 and figures["swap_error"] < 1e-5
    assert 0 <= figures["calibration_error"] <= 1 and (tmp_path / "calibration.png").is_file()
    with pytest.raises(UserError, match="no comparisons of valid songs"):
        reward_evaluation.evaluate(reward, manifest.folder, tmp_path, "valid")


def test_lights_are_scored_for_their_song(module, wav, tmp_path):
    generate(module, arguments(add_arguments, "--input", wav, "--temperature", 1, "--samples", 2), tmp_path, tmp_path)
    reward = made("cqtml_demo_reward", "model.reward_model.width=16")
    lights = [tmp_path / f"lights_{n}.npz" for n in (1, 2)]
    words = ["--input", wav, "--lights", *lights]
    table, picture = scoring.generate(reward, arguments(scoring.add_arguments, *words), tmp_path, tmp_path)
    rewards = [float(row["reward"]) for row in csv.DictReader(table.open())]
    assert len(rewards) == 2 and rewards[0] >= rewards[1] and picture.is_file()
    np.savez(tmp_path / "wrong.npz", brightness=np.full((4, 40), 2.0), fps=40.0)
    np.savez(tmp_path / "short.npz", brightness=np.zeros((4, 400)), fps=40.0)
    (tmp_path / "text.npz").write_text("no archive")
    for name, told in [
        ("wrong", "each from 0 to 1"),
        ("short", "differ by"),
        ("text", "is no lights.npz"),
        ("none", "is no lights.npz"),
    ]:
        with pytest.raises(UserError, match=told):
            scoring.read_lights(tmp_path / f"{name}.npz", 382)
    with pytest.raises(UserError, match="say which lights"):
        scoring.generate(reward, arguments(scoring.add_arguments, "--input", wav), tmp_path, tmp_path)


def test_a_run_is_loaded_from_its_folder_alone(module, tmp_path):
    run = RunFolder(tmp_path / "cqtml_demo" / "0123abcd")
    run.create()
    run.config_file.write_text(load("cqtml_demo", *TINY).to_yaml())
    write_json(run.data_file, {"identity": "x", "info": facts()})
    with pytest.raises(UserError, match="no checkpoint yet"):
        api.load(run.path)
    checkpoint.save(run.checkpoints, Checkpoint(3, {"model": module.state_dict()}, {}))
    cqt = api.listen(song(1))
    assert torch.equal(api.generate_deterministic(api.load(run.path), cqt), api.generate_deterministic(module, cqt))
    with pytest.raises(UserError, match="is no run folder"):
        api.load(tmp_path)


def test_the_scripted_judge_says_which_and_where_it_cannot_tell():
    sample = segment(5)
    follows = module_free_lights(sample["cqt"])
    flicker = np.tile([0.0, 1.0], 64)[None].repeat(4, 0).reshape(4, 8, 16).mean(2).repeat(16, 1)
    noise = np.random.default_rng(0).random((4, 8)).repeat(16, 1)
    assert verdict({"cqt": sample["cqt"], "a": follows, "b": noise}) == "a"
    assert verdict({"cqt": sample["cqt"], "a": noise, "b": follows}) == "b"
    assert verdict({"cqt": sample["cqt"], "a": flicker, "b": flicker}) == "tie"


def module_free_lights(cqt):
    from models.cqtml.music import taught

    return taught(torch.from_numpy(cqt)[None], 0.15)[0].numpy()
