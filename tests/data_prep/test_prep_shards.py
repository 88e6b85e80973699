"""Shards are plain tars that any reader takes, with bytes that depend on the samples alone, and an index that finds every one."""

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from data_prep.shards import NotWritten, ShardWriter, commit, differences, encode
from pipeline.manifest import ShardInfo
from pipeline.shards import ShardReader, decode, members

SAMPLES = [
    (
        f"random_track{i:06d}-012-03",
        {"mixture": np.full((4, i), i, np.float32), "meta": {"track": f"t{i}", "at": i / 3}},
    )
    for i in range(7)
]


def write(folder: Path, name: str = "train-000000", samples=SAMPLES) -> ShardInfo:
    with ShardWriter(folder, f"aside.{name}") as writer:
        for key, fields in samples:
            writer.add(key, fields)
        written = writer.finish()
        commit(writer, folder, name)
    return ShardInfo(name, "train", written.samples, written.tar_size, written.tar_hash, written.index_hash)


def test_the_same_samples_give_the_same_bytes(tmp_path):
    first, second = write(tmp_path, "train-000000"), write(tmp_path, "train-000001")
    assert (first.tar_hash, first.index_hash) == (second.tar_hash, second.index_hash)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"train-00000{i}.{kind}" for i in (0, 1) for kind in ("index.npy", "tar")
    ]


def test_our_reader_finds_every_sample(tmp_path):
    reader = ShardReader(tmp_path, write(tmp_path))
    for row, (key, fields) in enumerate(SAMPLES):
        sample = decode(members(reader.read(row)))
        assert sample["__key__"] == key
        assert sample["meta"] == fields["meta"]
        np.testing.assert_array_equal(sample["mixture"], fields["mixture"])
    reader.close()


def test_tarfile_and_gnu_tar_read_it(tmp_path):
    write(tmp_path)
    path = tmp_path / "train-000000.tar"
    names = [f"{key}.{field}" for key, _ in SAMPLES for field in ("meta.json", "mixture.npy")]
    with tarfile.open(path) as tar:
        assert tar.getnames() == names
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in tar} == {(0, 0, 0, 0o644, "")}
        raw = tar.extractfile(names[-1]).read()
    np.testing.assert_array_equal(np.load(io.BytesIO(raw), allow_pickle=False), SAMPLES[-1][1]["mixture"])
    listed = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == names
    assert listed.stderr == ""


def test_stock_webdataset_reads_it(tmp_path):
    wds = pytest.importorskip("webdataset")
    write(tmp_path)
    dataset = wds.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False).decode()
    for sample, (key, fields) in zip(dataset, SAMPLES, strict=True):
        assert sample["__key__"] == key
        assert sample["meta.json"] == fields["meta"]
        np.testing.assert_array_equal(sample["mixture.npy"], fields["mixture"])


def test_what_cannot_be_a_member_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dot"):
        encode("a.b", {"x": np.zeros(1)})
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        encode("k" * 95, {"x": np.zeros(1)})
    with pytest.raises(ValueError, match="Object arrays"):
        encode("a", {"x": np.array([{}])})
    with pytest.raises(ValueError, match="two samples"), ShardWriter(tmp_path, "aside") as writer:
        writer.add("a", {})
        writer.add("a", {})
    assert not list(tmp_path.iterdir()), "an unfinished shard cleans up after itself"


def test_what_the_disk_did_not_keep_is_noticed_before_the_commit(tmp_path, monkeypatch):
    """Read-back: the file loses a byte between writing and looking again."""
    import os

    fsync = os.fsync

    def lossy(fd):
        fsync(fd)
        if os.fstat(fd).st_size > 1000:
            os.pwrite(fd, b"?", 700)

    monkeypatch.setattr(os, "fsync", lossy)
    with pytest.raises(NotWritten, match=r"aside.*tar does not hold the bytes that were written"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_empty_shard_is_a_tar(tmp_path):
    info = write(tmp_path, samples=[])
    assert len(ShardReader(tmp_path, info)) == 0
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames() == []


def test_every_flipped_bit_differs(tmp_path):
    with ShardWriter(tmp_path, "aside") as writer:
        writer.add("a", {"x": np.arange(4)})
        written = writer.finish()
        commit(writer, tmp_path, "s")
    path, index = tmp_path / "s.tar", tmp_path / "s.index.npy"
    good = path.read_bytes()
    for at in range(0, len(good), 97):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        assert differences(path, index, written)
    path.write_bytes(good)
    assert differences(path, index, written) == []


@settings(max_examples=60, deadline=None)
@given(
    array=npst.arrays(
        dtype=st.sampled_from([np.float32, np.int64, np.int16, np.uint8, np.bool_]),
        shape=npst.array_shapes(min_dims=0, max_dims=3, max_side=5, min_side=0),
    ),
    key=st.text(alphabet="abcXYZ019_-", min_size=1, max_size=40),
)
def test_any_array_survives(array, key):
    sample = decode(members(b"".join(encode(key, {"x": array, "y": np.asfortranarray(array)}))))
    assert sample["__key__"] == key
    assert sample["x"].dtype == array.dtype
    assert sample["x"].shape == array.shape
    np.testing.assert_array_equal(sample["x"], array)
    np.testing.assert_array_equal(sample["y"], array)
