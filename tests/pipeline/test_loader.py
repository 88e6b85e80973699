"""The loader's promises: one sequence for every number of ranks and workers, stop and go on anywhere, nothing lost."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_factory import numbered, write_dataset

from data_prep import shards as prepared
from pipeline import loader as loading
from pipeline.errors import RunFailed, UserError
from pipeline.loader import Evaluation, Loader
from pipeline.manifest import Manifest, ShardInfo
from pipeline.shards import ShardReader

COUNT = 88


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), [17, 1, 40, 30])


def batches(manifest, steps, world=1, **options):
    """The global batches of ``steps`` steps: the ranks' shares put together."""
    options = {"batch_size": 16, "seed": 5} | options
    loaders = [Loader(manifest, "train", rank=rank, world_size=world, **options) for rank in range(world)]
    streams = [iter(loader) for loader in loaders]
    result = []
    for _ in range(steps):
        shares = [next(stream) for stream in streams]
        assert all(len(share["position"]) == options["batch_size"] // world for share in shares)
        result.append({name: torch.cat([share[name] for share in shares]) for name in shares[0]})
    for loader in loaders:
        loader.close()
    return result


def ids(global_batches):
    return torch.cat([batch["id"] for batch in global_batches]).tolist()


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


# -- one sequence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "workers"), [*itertools.product((1, 2, 4, 8), (0, 1, 4))])
def test_the_same_sequence_for_every_world_size_and_number_of_workers(manifest, world, workers):
    assert_equal(batches(manifest, 8, world, workers=workers), batches(manifest, 8))


@pytest.mark.parametrize("world", [1, 4])
def test_two_threads_hand_out_what_one_does(manifest, monkeypatch, world):
    """Large samples are read by two."""
    expected = batches(manifest, 40, partner=True)
    monkeypatch.setattr(loading, "LARGE", 0)
    monkeypatch.setattr(loading, "_read", _slow_where_odd)
    assert_equal(batches(manifest, 40, world, partner=True), expected)


def _slow_where_odd(reader, memory, number, read=loading._read):
    time.sleep(0.003 * (number % 2))  # so that they overtake each other
    return read(reader, memory, number)


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 1), (1, 1)])
def test_partners_are_alike_for_every_world_size_and_number_of_workers(manifest, world, workers):
    whole = batches(manifest, 24, partner=True)
    assert_equal(batches(manifest, 24, world, workers=workers, partner=True), whole)
    plain = batches(manifest, 24)
    assert [b["id"].tolist() for b in plain] == [b["id"].tolist() for b in whole], (
        "the samples are what they were without"
    )
    assert_equal(batches(manifest, 4, position=160, partner=True), whole[10:14])
    pairs = [(a, b) for batch in whole for a, b in zip(batch["id"].tolist(), batch["other_id"].tolist(), strict=True)]
    assert len(set(pairs)) > 0.9 * len(pairs) and sum(a == b for a, b in pairs) < 20, (
        "drawn independently, anew in every epoch"
    )
    for batch in whole[:2]:
        for number, mel in zip(batch["other_id"].tolist(), batch["other_mel"].numpy(), strict=True):
            assert np.array_equal(mel, numbered(number)["mel"])


def test_samples_arrive_unchanged(manifest):
    for batch in batches(manifest, 6):
        assert batch["mel"].dtype == torch.float32 and batch["mel"].shape == (16, 3, 5)
        for number, mel in zip(batch["id"].tolist(), batch["mel"].numpy(), strict=True):
            assert np.array_equal(mel, numbered(number)["mel"])


def test_batches_straddle_epochs_and_nothing_is_dropped_or_repeated(manifest):
    seen = ids(batches(manifest, 33))  # 6 epochs of 88 in batches of 16
    for epoch in range(6):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))


def test_positions_count_on_from_the_start(manifest):
    first, second = batches(manifest, 2, position=1000)
    assert torch.cat([first["position"], second["position"]]).tolist() == list(range(1000, 1032))


@pytest.mark.parametrize(("shards", "world"), [([1], 8), ([3], 8), ([2, 1], 4), ([1] * 11, 2)])
def test_fewer_samples_than_a_batch_or_than_ranks(tmp_path, shards, world):
    manifest, count = write_dataset(tmp_path, shards), sum(shards)
    seen = ids(batches(manifest, 3 * count, world))
    assert len(seen) == 48 * count
    for epoch in range(48):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_another_seed_is_another_order(manifest):
    assert ids(batches(manifest, 5, seed=1)) != ids(batches(manifest, 5, seed=2))


def test_the_global_generator_is_left_alone(manifest):
    before = torch.get_rng_state()
    batches(manifest, 3, workers=2)
    assert torch.equal(before, torch.get_rng_state())


# -- stop and go on -------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    legs=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 9)), min_size=1, max_size=6),
    ahead=st.integers(0, 2),
)
def test_stop_anywhere_and_go_on_with_another_world_size(manifest, legs, ahead):
    seen, state = [], {"position": 0, "skip": []}
    for world, steps in legs:
        options = {"position": state["position"], "skip": state["skip"]}
        seen += ids(batches(manifest, steps + ahead, world, **options)[:steps]) if steps else []
        state = json.loads(json.dumps(Loader(manifest, "train", batch_size=16, seed=5, **options).state_after(steps)))
    assert state["position"] == len(seen)
    assert seen == ids(batches(manifest, len(seen) // 16)) if seen else True
    for epoch in range(len(seen) // COUNT):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))


def test_an_epoch_over_every_combination_of_world_size_and_workers(manifest):
    """Stopped twelve times in the middle of what was read ahead, each time gone on elsewhere: 0 lost, 0 seen twice."""
    seen, position = [], 0
    for world, workers in itertools.product((8, 1, 4, 2), (4, 0, 1)):
        seen += ids(batches(manifest, 3, world, batch_size=8, workers=workers, position=position))
        position = Loader(manifest, "train", batch_size=8, seed=5, position=position).state_after(3)["position"]
    assert position == len(seen) == 288
    for epoch in range(3):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))
    assert seen == ids(batches(manifest, 36, batch_size=8))


def test_going_on_with_another_batch_size_and_workers(manifest):
    seen = ids(batches(manifest, 3, workers=1)) + ids(batches(manifest, 4, 2, batch_size=10, position=48))
    assert seen == ids(batches(manifest, 88, batch_size=1))


@settings(max_examples=60, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=6),
    start=st.integers(0, 200),
    world=st.sampled_from([1, 2, 8]),
)
def test_skipped_windows_are_jumped_over_by_everybody(manifest, ranges, start, world):
    skip = [(begin, begin + length) for begin, length in ranges]
    options = {"batch_size": 16, "position": start, "skip": skip, "world_size": world}
    loaders = [Loader(manifest, "train", rank=rank, **options) for rank in range(world)]
    streams = [iter(loader) for loader in loaders]
    found = [p for _ in range(3) for stream in streams for p in next(stream)["position"].tolist()]
    wanted = (p for p in itertools.count(start) if not any(begin <= p < end for begin, end in skip))
    assert found == list(itertools.islice(wanted, 48))
    assert loaders[-1].state_after(3)["position"] == found[-1] + 1
    for loader in loaders:
        loader.close()


def test_the_state_is_small_and_knows_its_data(manifest):
    skip = [(10**12 + i * 10**6, 10**12 + i * 10**6 + 4096) for i in range(20)]
    loader = Loader(manifest, "train", batch_size=16, seed=5, position=10**12, skip=skip)
    state = loader.state_after(10**9)
    assert len(json.dumps(state)) < 1024 and state["skip"] == [list(s) for s in skip]
    loader.check(json.loads(json.dumps(state)))
    with pytest.raises(UserError, match="seed 6"):
        loader.check(state | {"seed": 6})
    with pytest.raises(UserError, match="manifest"):
        loader.check(state | {"manifest": "other"})


def test_at_any_position_of_a_hundred_million_samples(tmp_path):
    """10,000 shards of 10,000 samples (every one a link to the same files), the first batch at any position."""
    one = write_dataset(tmp_path, [10_000], make=lambda i: {"id": np.int64(i)})
    (info,) = one.shards
    shards = []
    for number in range(10_000):
        shards.append(ShardInfo(f"s{number}", "train", *list(vars(info).values())[2:]))
        for end in ("tar", "index.npy"):
            (tmp_path / f"s{number}.{end}").symlink_to(tmp_path / f"{info.name}.{end}")
    huge = Manifest(tmp_path, "test", "test", None, {}, tuple(shards))
    rss, before = psutil.Process().memory_info().rss, len(psutil.Process().open_files())
    begin = time.perf_counter()
    with Loader(huge, "train", batch_size=64, position=987_654_321_012) as loader:
        batch = next(iter(loader))
        seconds = time.perf_counter() - begin
        grown = psutil.Process().memory_info().rss - rss
        files = len(psutil.Process().open_files())
        assert [int(i) for i in batch["id"]] == [loader.sample(p)["id"] for p in batch["position"].tolist()]
    print(
        f"first batch after {seconds * 1e3:.0f} ms, {grown / 1e6:.1f} MB"
    )  # time is told, not tested: machines are shared
    assert grown < 64e6 and files - before < 300


def test_open_files_are_bounded(tmp_path):
    manifest = write_dataset(tmp_path, [1] * 300)
    before = len(psutil.Process().open_files())
    with Loader(manifest, "train", batch_size=100) as loader:
        stream = iter(loader)
        for _ in range(6):
            next(stream)
            assert len(psutil.Process().open_files()) - before < 280


# -- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("limit", [None, 2])
def test_evaluation_sees_each_sample_once_in_one_order(manifest, world, limit):
    passes = [
        [list(Evaluation(manifest, "train", batch_size=30, rank=r, world_size=w, limit=limit)) for r in range(w)]
        for w in (1, world)
    ]
    alone, shared = (
        [
            torch.cat([share[number][field] for share in ranks if number < len(share)]).tolist()
            for number in range(2 if limit else 3)
            for field in ("id", "position")
        ]
        for ranks in passes
    )
    assert shared == alone
    assert sum(len(share["id"]) for ranks in passes[1] for share in ranks) == (60 if limit else COUNT)
    if not limit:
        assert sorted(itertools.chain(*shared[0::2])) == list(range(COUNT))


def test_evaluation_may_leave_a_rank_without_a_batch_and_can_be_repeated(tmp_path):
    manifest = write_dataset(tmp_path, [5], split="valid")
    ranks = [Evaluation(manifest, "valid", batch_size=4, rank=r, world_size=4) for r in range(4)]
    assert all(len(rank) == 2 and rank.samples == 5 for rank in ranks)
    assert [[len(batch["id"]) for batch in rank] for rank in ranks] == [[1], [1], [1], [1, 1]]
    assert [batch["id"].tolist() for batch in ranks[3]] == [batch["id"].tolist() for batch in ranks[3]]


# -- memory and workers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_is_kept_is_not_overwritten(manifest, workers):
    """Its memory is used again only once the last tensor of it, be it a slice, is gone."""
    expected = batches(manifest, 30)
    with Loader(manifest, "train", batch_size=16, seed=5, workers=workers) as loader:
        kept = []
        for number, batch in enumerate(itertools.islice(loader, 30)):
            kept.append({"mel": batch["mel"][3:5], "id": batch["id"].numpy()} if number % 3 else batch)
            if number > 15:
                kept[number - 15] = None  # some of them are given back
        for number, batch in enumerate(kept):
            if batch is not None:
                assert torch.equal(
                    torch.as_tensor(batch["mel"]),
                    expected[number]["mel"][3:5] if number % 3 else expected[number]["mel"],
                )
                assert torch.equal(torch.as_tensor(batch["id"]), expected[number]["id"])


def test_memory_is_used_again(manifest):
    with Loader(manifest, "train", batch_size=16) as loader:
        places = {batch["mel"].data_ptr() for batch in itertools.islice(loader, 50)}
    assert len(places) <= 6


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_the_same(manifest, monkeypatch, workers):
    """The way of a machine with CUDA, but for the locking of pages, which needs one."""
    expected, empty = batches(manifest, 8), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **kwargs: empty(*args, **kwargs))
    assert_equal(batches(manifest, 8, workers=workers, pin_memory=True), expected)
    whole = [batch["id"] for batch in Evaluation(manifest, "train", batch_size=16, pin_memory=True)]
    assert sorted(torch.cat(whole).tolist()) == list(range(COUNT))


@pytest.fixture
def children():
    """What this process has started since the test began; other tests' daemons may be there before."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [child for child in psutil.Process().children(recursive=True) if child not in before]


def test_a_dead_worker_is_one_clear_error(manifest, children):
    with Loader(manifest, "train", batch_size=16, workers=2) as loader:
        stream = iter(loader)
        next(stream)
        victim = children()[0]
        victim.kill()
        begin = time.monotonic()
        with pytest.raises(
            RunFailed, match=rf"^Loader worker {victim.pid} was killed by SIGKILL .* last checkpoint\.$"
        ):
            for _ in range(8):
                next(stream)
        assert time.monotonic() - begin < 30, "at once, not after a time-out"
    assert not children()


def test_the_trainers_signals_do_not_reach_the_workers(manifest, children):
    with Loader(manifest, "train", batch_size=16, workers=2, seed=5) as loader:
        stream = iter(loader)
        found = [next(stream)]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            for child in children():
                child.send_signal(number)
        found += itertools.islice(stream, 11)
    assert ids(found) == ids(batches(manifest, 12))
    assert not children()


def test_several_loaders_at_once_and_closed_in_any_order(manifest, children):
    loaders = [Loader(manifest, "train", batch_size=16, workers=2, seed=5) for _ in range(3)]
    streams = [iter(loader) for loader in loaders]
    assert len({tuple(next(stream)["id"].tolist()) for stream in streams}) == 1
    for at in (1, 0, 2):
        loaders[at].close()
        loaders[at].close()
    assert not children()


@pytest.mark.parametrize("ending", ["kill", "exit"])
def test_no_worker_outlives_the_trainer(manifest, ending):
    """Not even two loaders of one process, whose pipes each other's workers have inherited."""
    program = f"""
        import os, psutil, time
        from pathlib import Path
        from pipeline.loader import Loader
        from pipeline.manifest import read_manifest
        manifest = read_manifest(Path({str(manifest.folder)!r}))
        streams = [iter(Loader(manifest, "train", batch_size=16, workers=2)) for _ in range(2)]
        for stream in streams:
            next(stream)
        print(*[child.pid for child in psutil.Process().children()], flush=True)
        time.sleep(60 if {ending == "kill"} else 0)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as trainer:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 4
        if ending == "kill":
            trainer.kill()
        assert trainer.wait(20) == (-signal.SIGKILL if ending == "kill" else 0)
    deadline = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# -- what the user gets wrong, and what the recipe may hold ---------------------------------------------------------------


def test_mistakes_are_one_sentence(manifest, tmp_path):
    with pytest.raises(UserError, match="'valid'; it has: train"):
        Loader(manifest, "valid", batch_size=16)
    with pytest.raises(UserError, match="'test'; it has: train"):
        Evaluation(manifest, "test", batch_size=16)
    with pytest.raises(UserError, match="16 samples cannot be shared equally by 3"):
        Loader(manifest, "train", batch_size=16, world_size=3)


def test_every_kind_of_number_arrives(tmp_path):
    kinds = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", "?", ">f4", ">i2"]

    def make(i):
        values = np.arange(6).reshape(2, 3) + i
        arrays = {f"kind{n}": values.astype(kind) for n, kind in enumerate(kinds)}
        return arrays | {"fortran": np.asfortranarray(values), "scalar": np.float32(i), "empty": np.empty((0, 4))}

    manifest = write_dataset(tmp_path, [3, 2], make=make)
    for batch in batches(manifest, 2, batch_size=8):
        for i, row in enumerate(batch["scalar"].tolist()):
            for name, wanted in make(int(row)).items():
                assert np.array_equal(batch[name][i].numpy(), wanted), name


def test_a_sample_with_its_metadata(manifest):
    loader = Loader(manifest, "train", batch_size=16, seed=5)
    sample = loader.sample(3)
    number = int(sample["id"])
    assert sample["meta"] == numbered(number)["meta"] and sample["__key__"] == f"{number:09d}"
    assert number == ids(batches(manifest, 1))[3]


def test_arrays_are_read_in_place(manifest, monkeypatch):
    """The slower way is for the first sample of a size only; else the speed measured is not the speed had."""
    slow = []
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, row: slow.append(row) or read(self, row))
    batches(manifest, 30)
    assert len(slow) <= 4  # two lengths of JSON in blocks, and the first sample for its shape


def test_what_the_preparation_writes_is_read_in_place(tmp_path, monkeypatch):
    with prepared.ShardWriter(tmp_path, "writing") as writer:
        for i in range(20):
            writer.add(
                f"{i:06d}",
                {field: np.asarray(value) if field == "id" else value for field, value in numbered(i).items()},
            )
        written = writer.finish()
        prepared.commit(writer, tmp_path, "train-000000")
    info = ShardInfo("train-000000", "train", 20, written.tar_size, written.tar_hash, written.index_hash)
    slow = []
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, row: slow.append(row) or read(self, row))
    for batch in batches(Manifest(tmp_path, "test", "test", None, {}, (info,)), 10):
        for number, mel in zip(batch["id"].flatten().tolist(), batch["mel"].numpy(), strict=True):
            assert np.array_equal(mel, numbered(number)["mel"])
    assert len(slow) <= 4


def test_the_file_system_gets_a_second_chance(manifest, monkeypatch):
    calls, preadv = itertools.count(), os.preadv

    def stale(file, buffers, offset, flags=0):
        if flags or next(calls) % 5 == 3:  # nothing is in memory, and now and then a file's handle is void
            raise OSError(116, "Stale file handle")
        return preadv(file, buffers, offset)

    expected = batches(manifest, 6)
    monkeypatch.setattr(os, "preadv", stale)
    with Loader(manifest, "train", batch_size=16, seed=5) as loader:
        found = list(itertools.islice(loader, 6))
        assert loader.substituted == 0
    assert_equal(found, expected)


def test_the_installed_package_needs_no_torch_to_read_a_manifest():
    code = "import sys, pipeline.shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
