"""MusicNet: labels fall where the notes sound, compositions stay together, and every trap by its name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.chorales import Note
from data_prep.demo_musicnet import _render_recording, _write_table, plan
from data_prep.musicnet import MOST_NOTES, RECIPES, read_notes
from data_prep.stage import BadInput
from data_prep.synth import Player
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.data_prep.building import build, samples, tree

STAGE = dataclasses.replace(RECIPES["musicnet_cqt_demo"], segment=22050)
HEADER = "start_time,end_time,instrument,note,start_beat,end_beat,note_value\n"


def recording(root: Path, folder: str, name: str, notes: list[Note], seconds: float, program: int = 0) -> None:
    for part in ("data", "labels"):
        (root / f"{folder}_{part}").mkdir(parents=True, exist_ok=True)
    wave = Player(44100).play(notes, program, seconds)
    soundfile.write(root / f"{folder}_data/{name}.wav", 0.5 * wave / np.abs(wave).max(), 44100, subtype="PCM_16")
    rows = [f"{round(n.start * 44100)},{round(n.end * 44100)},{program + 1},{n.pitch},0.0,1.0,Quarter\n" for n in notes]
    (root / f"{folder}_labels/{name}.csv").write_text(HEADER + "".join(rows))


def tune(seed: int) -> list[Note]:
    rng = np.random.default_rng(seed)
    return [Note(0.1 + 0.4 * i, 0.45 + 0.4 * i, int(rng.integers(50, 75)), 90) for i in range(7)]


def write_corpus(root: Path) -> Path:
    for number in range(6):
        recording(root, "train", str(1727 + number), tune(number), 3.2, program=(0, 40)[number % 2])
    recording(root, "test", "2303", tune(9), 3.2)
    lines = [f"{1727 + n},Demo,Opus {n // 2},{n % 2 + 1},Solo\n" for n in range(6)]
    (root / "musicnet_metadata.csv").write_text(
        "id,composer,composition,movement,ensemble\n" + "".join(lines) + "2303,Demo,Opus 0,3,Solo\n"
    )
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    root = write_corpus(tmp_path_factory.mktemp("musicnet"))
    folder, quarantined = build(root, tmp_path_factory.mktemp("prepared") / STAGE.recipe, STAGE)
    assert quarantined == {}
    return root, folder


@pytest.fixture
def corpus(tmp_path) -> Path:
    """To spoil."""
    return write_corpus(tmp_path / "musicnet")


def test_notes_are_the_labels_in_samples_of_the_segment(prepared):
    root, folder = prepared
    info = read_manifest(folder).info
    assert (info["frames"], sum(info["samples"].values())) == (345, 21)
    for sample in samples(folder):
        meta, count = sample["meta"], int(sample["note_count"])
        assert (sample["notes"].shape, sample["notes"].dtype) == ((MOST_NOTES, 4), np.int32)
        assert (sample["notes"][count:] == -1).all()
        split = "test" if sample["split"] == "test" else "train"
        labels = np.loadtxt(
            root / f"{split}_labels/{meta['recording']}.csv", delimiter=",", skiprows=1, usecols=range(4)
        )
        labels[:, :2] = np.rint(labels[:, :2] / 2) - meta["start"]
        heard = labels[(labels[:, 1] > 0) & (labels[:, 0] < 22050)]
        np.testing.assert_array_equal(sample["notes"][:count], heard[:, [0, 1, 3, 2]])
        assert count in (2, 3, 4)


def test_a_note_sounds_in_its_cqt_bin_where_its_label_says(prepared):
    """The planted truth: the loudest bin while a note is held is its fundamental's, or an octave of it."""
    right = total = 0
    for sample in samples(prepared[1]):
        for start, end, pitch, _ in sample["notes"][: int(sample["note_count"])]:
            frame = (start + 2 * end) // 3 // 64
            if start >= 0 and end <= 22050:
                loudest = int(sample["cqt"][0][:, frame].argmax()) + 24  # bin 0 is C1, MIDI 24
                right += (loudest - pitch) in (0, 12, 19, 24)
                total += 1
    assert total > 25
    assert right / total > 0.95


def test_movements_of_a_composition_stay_together(prepared):
    splits: dict[str, set[str]] = {}
    for item in STAGE.scan(prepared[0]):
        splits.setdefault(item.group, set()).add(item.split)
    assert {frozenset(found) for found in splits.values()} == {
        frozenset({"train"}),
        frozenset({"valid"}),
        frozenset({"test"}),
    }
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == 4, "three compositions, and a test recording on its own"


@pytest.mark.soak  # in `make test` Slakh and CocoChorales show it for all: the engine is the same
def test_two_workers_write_the_bytes_of_one(prepared, tmp_path):
    root, folder = prepared
    assert tree(build(root, tmp_path / STAGE.recipe, STAGE, workers=2)[0]) == tree(folder)


def test_every_planted_trap(corpus, tmp_path):
    labels = corpus / "train_labels"
    (labels / "1727.csv").unlink()
    (labels / "1728.csv").write_text((labels / "1728.csv").read_text().replace("note,", "pitch,", 1))
    (labels / "1729.csv").write_text((labels / "1729.csv").read_text().replace("4410,", "4410.5,", 1))
    audio, _ = soundfile.read(corpus / "train_data/1731.wav")
    soundfile.write(corpus / "train_data/1731.wav", audio[::4], 44100)  # labels in the samples of another rate
    folder, quarantined = build(corpus, tmp_path / "out", STAGE)
    assert {name: reason.split(" at ")[0] for name, reason in quarantined.items()} == {
        "1727": "it has no labels: no file 1727.csv beside its folder",
        "1728": "its labels have no column note",
        "1729": "its labels hold something that is not a whole number",
        "1731": "its labels end",
    }
    assert len(samples(folder)) == 9


def test_times_are_44100_indices_whatever_the_files_rate(corpus, tmp_path):
    import soxr

    before = {s["__key__"]: s["notes"] for s in samples(build(corpus, tmp_path / "a", STAGE)[0])}
    for path in corpus.glob("*_data/*.wav"):
        soundfile.write(path, soxr.resample(soundfile.read(path)[0], 44100, 48000, quality="VHQ"), 48000)
    after = {s["__key__"]: s["notes"] for s in samples(build(corpus, tmp_path / "b", STAGE)[0])}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_labels_that_make_no_sense():
    good = read_notes((HEADER + "100,300,1,60,0,1,Q\n50,300,41,62,0,1,Q\n").encode(), 22050)
    assert good.tolist() == [[25, 150, 62, 41], [50, 150, 60, 1]]
    assert read_notes(HEADER.encode(), 22050).shape == (0, 4)
    for line in ("300,100,1,60,0,1,Q", "1,2,1,128,0,1,Q", "1,2,1,-1,0,1,Q", "1.5,2,1,60,0,1,Q", "1,2"):
        with pytest.raises(BadInput, match="its labels hold"):
            read_notes((HEADER + line + "\n").encode(), 22050)
    with pytest.raises(BadInput, match="no column start_time, end_time, instrument, note"):
        read_notes(b"\xff\x00", 22050)


def test_too_many_notes_cost_the_segment_and_are_counted(corpus, tmp_path):
    path = corpus / "train_labels/1727.csv"
    path.write_text(path.read_text() + "100,200,1,60,0,1,Q\n" * (MOST_NOTES + 1))
    folder, _ = build(corpus, tmp_path / "out", STAGE)
    assert "1 segments with more than 512 notes were left out" in (folder / "README.md").read_text()
    assert len(samples(folder)) == 20


def test_other_layouts_are_named(tmp_path):
    (tmp_path / "train_labels").mkdir()
    with pytest.raises(UserError, match="is not laid out as expected"):
        STAGE.scan(tmp_path)
    (tmp_path / "train_data").mkdir()
    with pytest.raises(UserError, match="has no recordings"):
        STAGE.scan(tmp_path)


def test_the_demo_corpus_is_read_and_holds_its_trap(tmp_path):
    chosen = plan(8, 0)[:2] + plan(8, 0)[-1:]
    for each in chosen:
        _render_recording(tmp_path, each)
    _write_table(tmp_path)
    items = {item.name: item for item in STAGE.scan(tmp_path)}
    assert items["1727"].facts == ("Demo", "Chorale No 1", "1", "String Quartet")
    assert [len(items[name].files) for name in ("1727", "1728", "1734")] == [2, 1, 2]
    first = (tmp_path / "train_data/1727.wav").read_bytes()
    _render_recording(tmp_path, chosen[0])
    assert (tmp_path / "train_data/1727.wav").read_bytes() == first
