"""Inputs are hashed together: each file read once in an attempt, by whoever is there, and again only where it changed."""

import os
import signal
from pathlib import Path

import pytest
import xxhash

from data_prep import hashing
from data_prep.claims import enter
from data_prep.hashing import forget_others, hash_inputs
from data_prep.stage import Input, InputFile
from tests.data_prep.light_stage import LightStage, die, ended, fork, write_source

STAGE = LightStage("light", 3)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A source of 60 files in 15 chunks, a work folder, and a note in ``read`` of every file that is read."""
    write_source(tmp_path / "source", 60)
    enter(tmp_path / "work")
    hash_file = hashing.hash_file

    def noted(path: Path) -> str:
        with (tmp_path / "read").open("a") as notes:
            notes.write(f"{path.name}\n")
        return hash_file(path)

    monkeypatch.setattr(hashing, "hash_file", noted)
    monkeypatch.setattr(hashing, "CHUNK", 4)
    return tmp_path


def find(place: Path, attempt: str) -> list[Input]:
    source = place / "source"
    return hash_inputs(STAGE.scan(source), source, place / "work", attempt, 2, lambda *_: None)


def reads(place: Path) -> list[str]:
    """Names of the files read since the last call, sorted."""
    names = sorted((place / "read").read_text().split())
    (place / "read").write_text("")
    return names


def test_hashes_and_sizes_are_those_of_the_files(place):
    for item in find(place, "a"):
        (file,) = item.files
        raw = (place / "source" / file.path).read_bytes()
        assert file == InputFile(file.path, len(raw), xxhash.xxh3_128_hexdigest(raw))


def test_several_share_the_work(place):
    assert [ended(pid) for pid in [fork(lambda: find(place, "a")) for _ in range(4)]] == [0] * 4
    assert reads(place) == [f"n{i:03d}.txt" for i in range(60)], "each file once"
    find(place, "a")
    assert reads(place) == []


def test_another_attempt_reads_what_changed(place):
    before = find(place, "a")
    reads(place)
    (place / "source/train/n000.txt").write_text("1007")
    os.utime(place / "source/train/n001.txt", (1, 1))
    after = find(place, "b")
    assert reads(place) == ["n000.txt", "n001.txt"]
    assert [old.name for old, new in zip(before, after, strict=True) if old != new] == ["n000"]
    forget_others(place / "work", "b")
    assert {path.name.split(".")[1] for path in (place / "work").glob("hashes.*")} == {"b"}


def test_what_one_was_killed_over_another_does(place, monkeypatch):
    def killed() -> None:
        monkeypatch.setattr(hashing, "_facts", lambda *_: die())
        find(place, "a")

    assert ended(fork(killed)) == -signal.SIGKILL
    assert list((place / "work").glob("*.claim"))
    assert len(find(place, "a")) == 60
    assert not list((place / "work").glob("*.claim"))


def test_what_cannot_be_read_has_no_hash(place):
    scanned = [Input("gone", "train", "gone", (InputFile("train/gone.txt"),)), *STAGE.scan(place / "source")]
    gone, *others = hash_inputs(scanned, place / "source", place / "work", "a", 1, lambda *_: None)
    assert gone.files[0].hash == "" and all(item.files[0].hash for item in others)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"train/n000.txt": [1', b"\xff"])
def test_a_torn_result_is_made_again(place, damage):
    expected = find(place, "a")
    for path in (place / "work").glob("hashes.*"):
        path.write_bytes(damage)
    assert find(place, "a") == expected
