"""Damaged shards: every flipped bit and every cut is found, named, counted and replaced in the same way by everybody."""

import io
import itertools
import pickle
import random
import re

import numpy as np
import pytest
from shard_factory import numbered, write_dataset, write_shard

from pipeline.batches import Damage, Fault
from pipeline.errors import RunFailed, UserError
from pipeline.loader import Evaluation, Loader
from pipeline.manifest import MANIFEST, read_manifest, sealed, unsealed
from pipeline.samples import STAND_INS, stand_ins
from pipeline.shards import BLOCK, DamagedSample, ShardReader, decode, members

SHARDS = [17, 1, 40, 30]
COUNT = sum(SHARDS)


@pytest.fixture
def manifest(tmp_path):
    return write_dataset(tmp_path, SHARDS)


def flip(path, at, bit=0):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit
    path.write_bytes(raw)


def flip_sample(manifest, shard, row, at):
    """One bit of the sample's bytes, ``at`` counted from its first tar header."""
    reader = ShardReader(manifest.folder, manifest.shards[shard])
    offset = reader.entry(row)[0]
    reader.close()
    flip(reader.path, offset + at)


def epoch(manifest, world=1, workers=0):
    """Ids by position of the first epoch (as far as whole batches go), what was named, and how many were replaced."""
    found, named, replaced = {}, set(), 0
    for rank in range(world):
        with Loader(manifest, "train", batch_size=8, rank=rank, world_size=world, seed=5, workers=workers) as loader:
            for batch in itertools.islice(loader, COUNT // 8):
                found |= zip(batch["position"].tolist(), batch["id"].tolist(), strict=True)
            named |= set(loader.faults())
            assert loader.faults() == []
            replaced += loader.substituted
    return found, named, replaced


def first_intact(number, intact):
    return next(other for other in stand_ins(number, COUNT) if other in intact)


@pytest.mark.parametrize("at", [0, 130, BLOCK + 6, BLOCK + 70, 3 * BLOCK - 1])
def test_a_flipped_bit_is_named_counted_and_replaced_alike_everywhere(manifest, at):
    whole, _, _ = epoch(manifest)
    flip_sample(manifest, 2, 5, at)  # sample 17 + 1 + 5
    found, named, replaced = epoch(manifest)
    stand_in = first_intact(23, set(range(COUNT)) - {23})
    assert found == {position: stand_in if number == 23 else number for position, number in whole.items()}
    (sentence,) = named
    assert (
        "train-000002.tar: sample 5 (bytes" in sentence
        and f"sample {stand_in} of the split stands in for 23" in sentence
    )
    assert replaced == 1
    for world, workers in ((1, 1), (2, 0), (4, 2), (8, 0)):
        assert epoch(manifest, world, workers) == (found, named, replaced)


def cut(path):
    path.write_bytes(path.read_bytes()[:-BLOCK])


def missing(path):
    path.unlink()


def flipped(path):
    flip(path, path.stat().st_size // 2)


def swapped(path):
    """Another shard's file, of the same size or not."""
    path.write_bytes(path.with_name(path.name.replace("2", "3")).read_bytes())


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "file", "sentence"),
    [
        (cut, "tar", "the manifest says"),
        (cut, "index.npy", "not the bytes that the manifest names"),
        (missing, "tar", "No such file"),
        (missing, "index.npy", "No such file"),
        (flipped, "index.npy", "not the bytes that the manifest names"),
        (swapped, "index.npy", "not the bytes that the manifest names"),
        (swapped, "tar", "the manifest says"),
        (a_folder, "tar", "train-000002"),
    ],
)
def test_a_lost_shard_is_named_once_and_its_samples_replaced_from_everywhere(manifest, damage, file, sentence):
    whole, _, _ = epoch(manifest)
    damage(manifest.folder / f"train-000002.{file}")
    found, named, replaced = epoch(manifest)
    lost, intact = range(18, 58), {*range(18), *range(58, COUNT)}
    expected = {p: number if number in intact else first_intact(number, intact) for p, number in whole.items()}
    assert found == expected and replaced == sum(number in lost for number in whole.values())
    assert len({expected[p] for p, number in whole.items() if number in lost}) > 10  # not all by the same one
    if damage is not a_folder:  # whose size is right by no rule, and whose samples are then named one by one
        assert len(named) == 1
    assert all(sentence in one and "train-000002" in one for one in named)
    assert epoch(manifest, 2, 1)[0] == found


def test_evaluation_names_and_replaces_too(manifest):
    flip_sample(manifest, 0, 3, 700)
    evaluation = Evaluation(manifest, "train", batch_size=16)
    seen = [number for batch in evaluation for number in batch["id"].tolist()]
    assert sorted(seen) == sorted([*range(3), *range(4, COUNT), first_intact(3, set(range(COUNT)) - {3})])
    assert len(evaluation.faults()) == 1 and evaluation.substituted == 1
    assert list(evaluation) and evaluation.faults() == [] and evaluation.substituted == 2  # named once, counted again


def test_a_damaged_sample_looked_at_with_its_metadata(manifest):
    flip_sample(manifest, 0, 3, 700)
    loader = Loader(manifest, "train", batch_size=8, seed=5)
    ids = [int(loader.sample(p)["id"]) for p in range(COUNT)]
    assert sorted(set(range(COUNT)) - set(ids)) == [3]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_intact_is_one_sentence_and_no_endless_loop(manifest, workers):
    for shard in range(4):
        missing(manifest.folder / f"train-{shard:06d}.tar")
    with (
        Loader(manifest, "train", batch_size=8, workers=workers) as loader,
        pytest.raises(RunFailed, match=r"^\S+ has no intact train sample left to train on .*; prepare it again\.$"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_more_stand_ins_than_samples_end_it_in_a_sentence(tmp_path, workers):
    manifest = write_dataset(tmp_path, [50] * 10)
    for shard in range(1, 10):
        missing(manifest.folder / f"train-{shard:06d}.tar")
    sentence = (
        r"^\S+ is not fit to train on: 1\d\d of the last 1\d\d rows .* No such file.*; prepare\.py --verify .*\.$"
    )
    with (
        Loader(manifest, "train", batch_size=50, workers=workers) as loader,
        pytest.raises(RunFailed, match=sentence),
    ):
        for _ in itertools.islice(loader, 20):
            assert loader.substituted <= 100


def test_a_few_damaged_samples_of_a_small_dataset_never_end_it(manifest):
    flip_sample(manifest, 2, 5, 130)  # 1 of 88, met in each of 115 epochs
    with Loader(manifest, "train", batch_size=88, seed=5) as loader:
        for _ in itertools.islice(loader, 115):
            pass
        assert loader.substituted == 115


def test_a_share_below_one_in_a_hundred_goes_on_for_ever_and_a_larger_one_does_not():
    damage = Damage()
    for n in range(100_000):
        damage.count(10, [Fault("bad", n, 0)] if n % 10 == 9 else [])
        assert damage.too_much() is None
    for n in range(1000):
        damage.count(10, [Fault("bad", n, 0)] if n % 9 == 8 else [])
    assert damage.too_much() is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_lost_in_the_middle_of_a_run(manifest, workers):
    with Loader(manifest, "train", batch_size=8, workers=workers) as loader:
        stream = iter(loader)
        next(stream)
        for shard in range(4):
            path = manifest.folder / f"train-{shard:06d}.tar"
            with path.open("r+b") as file:  # also where it is open already
                file.truncate(100)
        with pytest.raises(RunFailed, match="no intact train sample"):
            for _ in range(20):
                next(stream)


def test_stand_ins_depend_on_the_sample_alone_and_end():
    assert list(stand_ins(7, 1000)) == list(stand_ins(7, 1000)) != list(stand_ins(8, 1000))
    assert len(list(stand_ins(7, 1000))) == STAND_INS


# -- intact bytes that make no sense ------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def replaced_by(manifest, number, sample):
    """The dataset with one sample (of the first shard) written anew, checksums and all."""
    made = [numbered(i) for i in range(SHARDS[0])]
    made[number] = {field: value for field, value in sample.items() if value is not None}
    tree = unsealed((manifest.folder / MANIFEST).read_bytes())
    line = write_shard(manifest.folder, "train-000000", "train", [(f"{i:09d}", one) for i, one in enumerate(made)])
    tree["shards"][0] = line
    (manifest.folder / MANIFEST).write_bytes(sealed(tree))
    return read_manifest(manifest.folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mel": np.zeros((3, 6), np.float32)}, r"mel float32\[3, 6\].* where others hold .*mel float32\[3, 5\]"),
        ({"mel": np.zeros((3, 5), np.float64)}, r"mel float64\[3, 5\]"),
        ({"mel": np.zeros((5, 3), np.float32)}, r"mel float32\[5, 3\]"),  # as many bytes
        ({"mel": np.zeros((3, 5), np.int32)}, r"mel int32\[3, 5\]"),
        ({"mel": None, "lem": np.zeros((3, 5), np.float32)}, r"lem float32\[3, 5\]"),
        ({"more": np.zeros(3)}, r"more float64\[3\]"),
        ({"mel": {"not": "an array"}}, "it holds id"),
        ({"mel": np.array([Bomb()])}, "object"),
        ({"mel": np.array("text")}, "only plain numbers"),
    ],
)
def test_a_sample_of_another_kind_is_replaced_and_named(manifest, change, sentence):
    manifest = replaced_by(manifest, 9, numbered(9) | change)
    found, named, replaced = epoch(manifest)
    assert 9 not in found.values() and replaced == 1
    (one,) = named
    assert "train-000000.tar: sample 9 cannot be decoded" in one
    assert re.search(sentence, one)


def test_nothing_is_ever_unpickled():
    file = io.BytesIO()
    np.save(file, np.array([Bomb()]), allow_pickle=True)
    with pytest.raises(ValueError, match="only plain numbers"):
        decode({"mel.npy": memoryview(file.getvalue())})
    with pytest.raises(ValueError, match="no decoder"):
        decode({"mel.pkl": memoryview(pickle.dumps(1))})


# -- every cut, every bit -------------------------------------------------------------------------------------------


def survey(folder, info, expected):
    """What reading the whole shard comes to: True where damage was found, and never anything but what was written."""
    try:
        reader = ShardReader(folder, info)
    except DamagedSample:
        return True
    found = False
    for row, wanted in enumerate(expected):
        try:
            sample = decode(members(reader.read(row)))
        except DamagedSample:
            found = True
        else:
            assert np.array_equal(sample["mel"], wanted["mel"]) and sample["meta"] == wanted["meta"]
    reader.close()
    return found


def test_a_cut_at_every_block_is_found_and_ends_nothing(tmp_path):
    manifest = write_dataset(tmp_path, [5, 2])
    path, expected = tmp_path / "train-000000.tar", [numbered(i) for i in range(5)]
    whole = path.read_bytes()
    assert not survey(tmp_path, manifest.shards[0], expected)
    for size in range(0, len(whole), BLOCK):
        path.write_bytes(whole[:size])
        assert survey(tmp_path, manifest.shards[0], expected), size
        training_goes_on(manifest)


def flips_are_found(tmp_path, count):
    manifest = write_dataset(tmp_path, [6, 2])
    expected = [numbered(i) for i in range(6)]
    paths = [tmp_path / name for name in ("train-000000.tar", "train-000000.index.npy", MANIFEST)]
    draw = random.Random(1)
    for _ in range(count):
        path = draw.choices(paths, [4, 1, 1])[0]
        whole = path.read_bytes()
        flip(path, draw.randrange(len(whole)), draw.randrange(8))
        if path.name == MANIFEST:
            with pytest.raises(UserError, match=r"manifest\.json is damaged .* run prepare\.py again"):
                read_manifest(tmp_path)
        else:
            assert survey(tmp_path, manifest.shards[0], expected)
            training_goes_on(manifest)
        path.write_bytes(whole)


def training_goes_on(manifest):
    with Loader(manifest, "train", batch_size=8) as loader:
        for batch in itertools.islice(loader, 2):
            for number, mel in zip(batch["id"].tolist(), batch["mel"].numpy(), strict=True):
                assert np.array_equal(mel, numbered(number)["mel"])


def test_random_flips_are_all_found_and_end_nothing(tmp_path):
    flips_are_found(tmp_path, 100)


@pytest.mark.soak
def test_a_thousand_random_flips_are_all_found_and_end_nothing(tmp_path):
    flips_are_found(tmp_path, 1000)


def test_a_manifest_is_read_only_when_every_byte_is_as_written(tmp_path):
    write_dataset(tmp_path, [3])
    path = tmp_path / MANIFEST
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            read_manifest(tmp_path)
        path.write_bytes(whole[:at])
        with pytest.raises(UserError, match="is damaged"):
            read_manifest(tmp_path)
    path.write_bytes(whole)
    assert read_manifest(tmp_path).samples("train") == 3
