"""FMA: the CQT is that of the stored audio, splits are by artist, and every trap of the real dataset by its name."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_prep.demo_fma import _render_clip, _write_table, id3_tag, plan
from data_prep.fma import GENRES, RECIPES
from models.features import CQT, cqt
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.data_prep.building import build, samples, tree

STAGE = dataclasses.replace(RECIPES["fma_cqt_demo"], segment=22050)
HEADER = (
    ["", "artist", "artist", "set", "set", "track", "track"],
    ["", "id", "name", "split", "subset", "genre_top", "license"],
    ["track_id", "", "", "", "", "", ""],
)


def clip(seconds: float, seed: int, rate: int = 44100) -> np.ndarray:
    at = np.arange(round(seconds * rate)) / rate
    tone = 0.2 * np.sin(2 * np.pi * 110 * 2 ** (seed / 12) * at) + 0.1 * np.sin(2 * np.pi * 220 * 2 ** (seed / 12) * at)
    return tone + 0.005 * np.random.default_rng(seed).standard_normal(len(at))


def write_clip(root: Path, number: int, audio: np.ndarray, rate: int = 44100) -> Path:
    path = root / f"fma_small/{number // 1000:03d}/{number:06d}.mp3"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, format="MP3")
    return path


def write_table(root: Path, rows: list[list]) -> None:
    (root / "fma_metadata").mkdir(parents=True, exist_ok=True)
    with (root / "fma_metadata/tracks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*HEADER, *rows])


ROWS = [
    [2, 1, 'A "quoted", name', "training", "small", "Hip-Hop", "CC"],
    [5, 1, "A", "training", "small", "Easy Listening", "CC"],
    [1001, 2, "B", "validation", "small", "", "CC"],
    [155001, 3, "C\nover two lines", "test", "small", "Rock", "CC"],
    [155002, 3, "C", "test", "large", "Rock", "CC"],
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("fma")
    write_table(root, ROWS)
    for row in ROWS[:4]:
        write_clip(root, row[0], clip(3.2, row[0] % 30))
    folder, quarantined = build(root, tmp_path_factory.mktemp("prepared") / STAGE.recipe, STAGE)
    assert quarantined == {}
    return root, folder


@pytest.fixture
def corpus(tmp_path) -> Path:
    """To spoil."""
    write_table(tmp_path, ROWS)
    for row in ROWS[:4]:
        write_clip(tmp_path, row[0], clip(1.1, row[0] % 30))
    return tmp_path


def test_fields_and_splits(prepared):
    _, folder = prepared
    info = read_manifest(folder).info
    assert info["samples"] == {"train": 6, "valid": 3, "test": 3}
    assert (info["frames"], info["seconds"], info["cqt"]["bins"], info["cqt"]["hop"]) == (345, 1.0, 84, 64)
    genres = {}
    for sample in samples(folder):
        assert (sample["cqt"].shape, sample["cqt"].dtype) == ((2, 84, 345), np.float32)
        assert (sample["audio"].shape, sample["audio"].dtype) == ((22050,), np.int16)
        assert np.abs(sample["cqt"][1]).max() <= np.float32(np.pi)
        genres[sample["meta"]["track"]] = int(sample["genre"])
    assert genres == {
        "000002": GENRES.index("Hip-Hop"),
        "000005": GENRES.index("Easy Listening"),
        "001001": -1,
        "155001": GENRES.index("Rock"),
    }


def test_the_cqt_is_that_of_the_stored_audio(prepared):
    _, folder = prepared
    for sample in samples(folder)[::3]:
        fresh = cqt(torch.from_numpy(sample["audio"].astype(np.float64) / 32768)).numpy()
        loud = np.abs(fresh) > CQT.floor
        np.testing.assert_allclose(np.exp(sample["cqt"][0])[loud], np.abs(fresh)[loud], rtol=1e-5)
        np.testing.assert_allclose(np.exp(1j * sample["cqt"][1])[loud], (fresh / np.abs(fresh))[loud], atol=1e-5)
        assert sample["cqt"][0].mean(axis=1).argmax() in (21 + int(sample["meta"]["track"]) % 30 + d for d in (0, 12))


def test_mean_and_deviation_are_those_of_the_training_bins(prepared):
    _, folder = prepared
    magnitude = np.concatenate([s["cqt"][0] for s in samples(folder, "train")], axis=1).astype(np.float64)
    info = read_manifest(folder).info
    np.testing.assert_allclose(info["mean"], magnitude.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(info["std"], magnitude.std(axis=1), atol=1e-4)


@pytest.mark.soak  # in `make test` Slakh and CocoChorales show it for all: the engine is the same
def test_two_workers_write_the_bytes_of_one(prepared, tmp_path):
    root, folder = prepared
    assert tree(build(root, tmp_path / STAGE.recipe, STAGE, workers=2)[0]) == tree(folder)


def test_every_planted_trap(corpus, tmp_path):
    path = corpus / "fma_small/000/000002.mp3"
    path.write_bytes(id3_tag(300_000) + path.read_bytes())  # a tag that promises five minutes
    (corpus / "fma_small/000/000005.mp3").write_bytes(id3_tag(30_000))
    write_clip(corpus, 9, clip(1.1, 9))
    write_clip(corpus, 1001, clip(0.5, 1))
    write_table(corpus, [*ROWS[:3], [155001, 3, "C", "test", "small", "Polka", "CC"]])
    write_clip(corpus, 155002, np.zeros(44100))
    write_table(corpus, [*ROWS[:3], [155001, 3, "C", "test", "small", "Polka", "CC"], ROWS[4]])
    folder, quarantined = build(corpus, tmp_path / "out", STAGE)
    assert quarantined == {
        "000005": "000005.mp3 is not readable audio: Format not recognised.",
        "000009": "tracks.csv does not list it",
        "001001": quarantined["001001"],
        "155001": "tracks.csv gives it a genre that FMA does not have: 'Polka'",
    }
    assert "1.0 s are needed" in quarantined["001001"]
    assert [s["meta"]["track"] for s in samples(folder)] == ["000002"], "5 minutes promised, 1.1 s decoded"
    assert "1 silent segments were left out" in (folder / "README.md").read_text()


def test_a_short_clip_is_padded_and_marked(corpus, tmp_path):
    stage = dataclasses.replace(STAGE, segment=2 * 22050)
    for sample in samples(build(corpus, tmp_path / "out", stage)[0]):
        assert 2 * 22050 - 1.2 * 22050 < sample["pad"] < 22050
        assert not sample["audio"][-sample["pad"] :].any()


def test_an_artist_in_two_splits_is_refused(corpus, tmp_path):
    write_table(corpus, [*ROWS[:3], [155001, 1, "A", "test", "small", "Rock", "CC"]])
    with pytest.raises(UserError, match="lies in two splits, test and train"):
        build(corpus, tmp_path / "out", STAGE)


def test_a_changed_table_rebuilds_what_it_changes(corpus, tmp_path):
    """Though it is no input's file: what it says of a clip is part of the shard's key."""
    folder, _ = build(corpus, tmp_path / "out", STAGE)
    before = {shard.name: shard.tar_hash for shard in read_manifest(folder).shards}
    write_table(corpus, [*ROWS[:3], [155001, 3, "C", "test", "small", "Jazz", "CC"]])
    folder, _ = build(corpus, tmp_path / "out", STAGE)
    after = {shard.name: shard.tar_hash for shard in read_manifest(folder).shards}
    assert {name for name in before if before[name] != after[name]} == {"test-000000"}


def test_a_table_that_is_not_fmas_is_named(corpus):
    path = corpus / "fma_metadata/tracks.csv"
    path.write_text("track_id,split\n2,training\n")
    with pytest.raises(UserError, match=r"has no column set/split, artist/id, .* in its two header rows"):
        STAGE.scan(corpus)
    path.unlink()
    with pytest.raises(UserError, match=r"has no fma_metadata/tracks\.csv"):
        STAGE.scan(corpus)


def test_the_demo_corpus_holds_its_traps(tmp_path):
    clips = [c for c in plan(10, 0) if c.trap or c.split == "test"][:5]
    for each in clips:
        _render_clip(tmp_path, each)
    _write_table(tmp_path)
    assert [c.trap for c in clips] == ["no audio", "short", "long tag", "not listed", ""]
    assert {item.name: item.facts[0] for item in STAGE.scan(tmp_path)} == {
        "000003": "training",
        "000004": "training",
        "000005": "training",
        "000006": "?",
        "000010": "test",
    }
    by_artist: dict[int, set[str]] = {}
    for each in plan(48, 0):
        by_artist.setdefault(each.artist, set()).add(each.split)
    assert all(len(splits) == 1 for splits in by_artist.values())
    assert {each.genre for each in plan(48, 0)} >= {"Easy Listening", "Rock"}
    first = next((tmp_path / "fma_small").rglob("000005.mp3")).read_bytes()
    _render_clip(tmp_path, clips[2])
    assert next((tmp_path / "fma_small").rglob("000005.mp3")).read_bytes() == first
