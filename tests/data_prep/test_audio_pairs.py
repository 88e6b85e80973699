"""Pairs that exist and pairs made from songs: what a sample is, who is kept apart from whom, and every trap by its name."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.audio_pairs import RECIPES
from data_prep.demo_audio_pairs import _gather_truth, _render_parts, plan
from data_prep.splits import connected, split_by_name
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.data_prep.building import build, samples, tree

PAIRS = dataclasses.replace(RECIPES["audio_pairs_demo"], segment=24000)
SONGS = dataclasses.replace(RECIPES["audio_pairs_songs_demo"], segment=24000)
RATE = 24000


def noise(seed: int, seconds: float, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))


def write(path: Path, audio: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, subtype="PCM_16")


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Four pairs for training, two to validate, in the layout and the spellings that occur."""
    for number, folder in enumerate(("train", "train", "train", "train", "val", "val")):
        for side in ("input", "output"):
            seed = 10 * number + (side == "output")
            write(tmp_path / f"dataset_pairs_wav/{folder}/pair_{number}_{side}.wav", noise(seed, 3))
    return tmp_path / "dataset_pairs_wav"


@pytest.fixture
def songs(tmp_path) -> Path:
    for number in range(14):
        write(tmp_path / f"songs/Album {number % 3}/My song.{number}.wav", noise(100 + number, 3.2))
    return tmp_path / "songs"


def test_a_sample_is_one_stretch_of_both_files(pairs, tmp_path):
    folder, quarantined = build(pairs, tmp_path / "out", PAIRS)
    assert quarantined == {}
    info = read_manifest(folder).info
    assert info["samples"] == {"train": 12, "valid": 6, "test": 0}
    assert (info["sample_rate"], info["seconds"], info["tracks"]) == (RATE, 1.0, ["input", "target"])
    for sample in samples(folder):
        for side, spelled in (("input", "input"), ("target", "output")):
            fact = sample["meta"][side]
            assert fact["file"].endswith(f"_{spelled}.wav")
            audio = soundfile.read(pairs / fact["file"], dtype="int16")[0][fact["start"] :][:RATE]
            np.testing.assert_array_equal(sample[side], audio)
        assert sample["meta"]["input"]["start"] == sample["meta"]["target"]["start"]
        assert sample["pad"].tolist() == [0, 0]
        assert sample["lufs"] == pytest.approx([-18, -18], abs=3)


def test_a_folder_a_pair_is_read_too_and_may_lie_deeper(pairs, tmp_path):
    for path in sorted(pairs.rglob("*.wav")):
        name, side = path.stem.rsplit("_", 1)
        target = path.parent / name / f"{'target' if side == 'output' else side}.wav"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    folder, quarantined = build(tmp_path, tmp_path / "out", PAIRS)
    assert quarantined == {}
    assert read_manifest(folder).info["samples"] == {"train": 12, "valid": 6, "test": 0}


def test_every_planted_trap(pairs, tmp_path):
    (pairs / "train/pair_0_output.wav").unlink()
    write(pairs / "train/solo.wav", noise(1, 3))
    write(pairs / "train/pair_1_output.wav", noise(2, 2.2))
    stereo = np.stack([noise(3, 3, 48000), noise(4, 3, 48000)], axis=1)
    write(pairs / "train/pair_2_input.wav", stereo, 48000)
    write(pairs / "train/pair_3_input.wav", noise(5, 3, 16000), 16000)
    (pairs / "val/pair_4_input.wav").write_bytes((pairs / "val/pair_4_input.wav").read_bytes()[:30000])
    folder, quarantined = build(pairs, tmp_path / "out", PAIRS)
    assert quarantined == {
        "train/pair_0": "it has no target: a pair without partner",
        "train/solo.wav": "solo.wav says neither input nor output nor target",
        "train/pair_3": "pair_3_input.wav has 16000 Hz, 24000 Hz are needed and nothing is upsampled",
        "val/pair_4": "pair_4_input.wav is cut off: its header promises more than the 0.62 s it holds",
    }
    found = samples(folder, "train")
    of = {name: [s for s in found if name in s["meta"]["input"]["file"]] for name in ("pair_1_", "pair_2_")}
    assert sorted(s["meta"]["target"]["start"] for s in of["pair_1_"]) == [0, int(1.2 * RATE)]
    assert len(of["pair_2_"]) == 3, "48 kHz for 3 s is 3 s"
    assert "1 pairs have sides of unequal length" in (folder / "README.md").read_text()


def test_a_short_pair_is_padded_and_marked_and_a_silent_side_left_out(pairs, tmp_path):
    stage = dataclasses.replace(PAIRS, segment=2 * RATE)
    for side in ("input", "output"):
        write(pairs / f"train/pair_0_{side}.wav", noise(7 + len(side), 1.5))
    write(pairs / "train/pair_1_output.wav", np.zeros(3 * RATE))
    write(pairs / "train/pair_2_output.wav", noise(9, 0.5))
    folder, quarantined = build(pairs, tmp_path / "out", stage)
    assert quarantined == {"train/pair_2": "its sides have 0.50 s in common, 1.0 s are needed"}
    short = [s for s in samples(folder) if "pair_0_" in s["meta"]["input"]["file"]]
    assert [s["pad"].tolist() for s in short] == [[RATE // 2, RATE // 2]]
    assert not short[0]["input"][-RATE // 2 :].any()
    assert not [s for s in samples(folder) if "pair_1_" in s["meta"]["input"]["file"]]


def test_the_same_recording_in_both_splits_is_refused(pairs, tmp_path):
    """Also where it is the input of one pair and the output of another."""
    (pairs / "val/pair_4_output.wav").write_bytes((pairs / "train/pair_1_input.wav").read_bytes())
    with pytest.raises(UserError, match="one recording lies under the names train/pair_1 and val/pair_4"):
        build(pairs, tmp_path / "out", PAIRS)


def test_songs_are_split_before_they_are_paired(songs, tmp_path):
    folder, quarantined = build(songs, tmp_path / "out", SONGS)
    assert quarantined == {}
    seen: dict[str, str] = {}
    found = samples(folder)
    assert {s["split"] for s in found} == {"train", "valid", "test"}
    for sample in found:
        for side in ("input", "target"):
            fact = sample["meta"][side]
            assert seen.setdefault(fact["file"], sample["split"]) == sample["split"]
            audio = soundfile.read(songs / fact["file"], dtype="int16")[0][fact["start"] :][:RATE]
            np.testing.assert_array_equal(sample[side], audio)
        assert sample["meta"]["input"]["file"] != sample["meta"]["target"]["file"]
    assert len(seen) == 14
    assert len(found) == 14 * 3


@pytest.mark.soak  # in `make test` Slakh and CocoChorales show it for all: the engine is the same
def test_two_workers_write_the_bytes_of_one(songs, tmp_path):
    stage = dataclasses.replace(SONGS, inputs_per_shard=3)
    one, two = (build(songs, tmp_path / f"{n}" / stage.recipe, stage, workers=n)[0] for n in (0, 2))
    assert tree(one) == tree(two)


def test_one_song_in_two_formats_stays_in_one_split(songs):
    for path in list(songs.rglob("*.wav")):
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
    splits: dict[str, set[str]] = {}
    for item in SONGS.scan(songs):
        splits.setdefault(item.name.rsplit(".", 1)[0], set()).add(item.split)
    assert len(splits) == 14
    assert all(len(found) == 1 for found in splits.values())


def test_a_copied_song_is_refused_where_it_lies_in_two_splits(songs, tmp_path):
    by_split = {item.split: item.name for item in SONGS.scan(songs)}
    (songs / by_split["test"]).write_bytes((songs / by_split["train"]).read_bytes())
    with pytest.raises(UserError, match="one recording lies under the names"):
        build(songs, tmp_path / "out", SONGS)


def test_other_layouts_are_named(songs, tmp_path):
    with pytest.raises(UserError, match="is not laid out as expected"):
        PAIRS.scan(songs)
    (tmp_path / "none/train").mkdir(parents=True)
    with pytest.raises(UserError, match="has no audio files"):
        PAIRS.scan(tmp_path / "none")
    with pytest.raises(UserError, match="holds 0 songs"):
        SONGS.scan(tmp_path / "none")
    with pytest.raises(UserError, match="is not a folder"):
        SONGS.scan(tmp_path / "absent")


# --- splits -----------------------------------------------------------------------------------------------------------------------


def test_splits_by_name_are_stable_and_never_empty():
    names = [f"song {i}" for i in range(1000)]
    splits = split_by_name(names)
    assert [sum(s == split for s in splits.values()) for split in ("train", "valid", "test")] == [806, 108, 86]
    assert all(split_by_name([*names, "one more"])[name] == splits[name] for name in names)
    assert sorted(split_by_name(["a", "b", "c"]).values()) == ["test", "train", "valid"]
    assert set(split_by_name(["a", "b"]).values()) == {"train"}
    assert sorted(split_by_name("abcdef", least=2).values()) == ["test"] * 2 + ["train"] * 2 + ["valid"] * 2


def test_marks_connect_names_through_others():
    assert connected({"d": ["1"], "a": ["2"], "c": ["1", "2"], "b": []}) == {"a": "a", "b": "b", "c": "a", "d": "a"}


# --- the demo corpus --------------------------------------------------------------------------------------------------------------


def test_the_demo_corpus_holds_its_traps_and_knows_its_truth(tmp_path):
    root = tmp_path / "audio_pairs"
    root.mkdir()
    for number in (0, 2, 3, 5, 8):
        _render_parts(root, plan(11, 2)[number])
    _gather_truth(root)
    (tmp_path / "again").mkdir()
    _render_parts(tmp_path / "again", plan(11, 2)[5])
    for path in (tmp_path / "again").rglob("*.wav"):
        assert path.read_bytes() == (root / path.relative_to(tmp_path / "again")).read_bytes(), path
    truth = json.loads((root / "truth.json").read_text())
    assert set(truth) == {p.relative_to(root).as_posix() for p in root.rglob("*.wav")}
    assert not (root / "dataset_pairs_wav/train/pair_0008_output.wav").exists()
    info = {name: soundfile.info(root / name) for name in truth}
    assert info["dataset_pairs_wav/train/pair_0005_output.wav"].channels == 2
    assert info["dataset_pairs_wav/train/pair_0003_output.wav"].duration == 14.5
    assert info["songs/Song 01.wav"].duration < 4
    for number in (0, 2, 3):
        sides = [truth[f"dataset_pairs_wav/train/pair_{number:04d}_{side}.wav"] for side in ("input", "output")]
        assert abs(sides[0]["tempo"] - sides[1]["tempo"]) > 0.5
    assert plan(11, 2) != plan(11, 3)
