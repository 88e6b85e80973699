"""Same bytes however many work on it and die over it; exactly what changed is built again; nothing is left behind."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data_prep import claims, worker
from data_prep.commits import WORK, read_committed, shard_files
from data_prep.engine import allowed_failures, prepare
from data_prep.finish import finish, verify
from data_prep.hashing import hash_inputs
from data_prep.plan import code_version, make_plan, read_plan
from data_prep.shards import differences
from data_prep.worker import InputChanged, Task, work_off
from pipeline import processes
from pipeline.errors import RunFailed, UserError
from tests.data_prep.light_stage import LightStage, Steps, ThreadsStage, ended, fork, tree, write_source

ROOT = Path(__file__).resolve().parents[2]
STAGE = LightStage("light", 3)


def build(
    source: Path, folder: Path, stage: LightStage = STAGE, failures: float = 0.05
) -> tuple[int, list[dict[str, str]]]:
    plan, built = prepare(stage, source, folder, 0, failures)
    return built, finish(stage, plan, folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, str]:
    """What an uninterrupted preparation gives."""
    folder = tmp_path_factory.mktemp("whole") / "light"
    build(source, folder)
    expected = tree(folder)
    assert len([name for name in expected if name.endswith(".tar")]) >= 5
    return expected


def start(source: Path, folder: Path, workers: int, sleep: float = 0.0) -> subprocess.Popen[str]:
    line = [sys.executable, "tests/data_prep/run_light.py", str(source), str(folder), str(workers)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LIGHT_SLEEP": str(sleep)}
    return subprocess.Popen(line, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_does_not_show(source, whole, tmp_path, workers):
    process = start(source, tmp_path / "light", workers)
    assert process.wait(120) == 0, process.stderr.read()
    assert tree(tmp_path / "light") == whole


def test_a_killed_worker_is_replaced_by_the_others(source, whole, tmp_path):
    process = start(source, tmp_path / "light", 2, sleep=0.1)
    deadline = time.monotonic() + 60
    while not (token := next((p.read_text() for p in (tmp_path / "light" / WORK).glob("train-*.claim")), "")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int(token.split("~")[1]), signal.SIGKILL)
    assert process.wait(120) == 0, process.stderr.read()
    assert tree(tmp_path / "light") == whole


def test_workers_end_with_their_supervisor(source, tmp_path):
    process = start(source, tmp_path / "light", 2, sleep=2)
    deadline = time.monotonic() + 60
    while len(crew := psutil.Process(process.pid).children(recursive=True)) < 2 or not list(
        tmp_path.rglob("train-*.claim")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(crew, timeout=5)[1]


def test_two_commands_share_one_folder(source, whole, tmp_path):
    both = [start(source, tmp_path / "light", 1, sleep=0.05) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0], [process.stderr.read() for process in both]
    assert tree(tmp_path / "light") == whole


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Three shards' inputs, and what an uninterrupted preparation makes of them."""
    source, folder = write_source(tmp_path_factory.mktemp("few"), 6), tmp_path_factory.mktemp("few") / "light"
    build(source, folder)
    return source, tree(folder)


def make_plan_in(source: Path, folder: Path) -> str:
    """Freeze the plan as ``prepare`` does, and no more."""
    from data_prep.engine import _open_work, _settle

    hashed = hash_inputs(STAGE.scan(source), source, _open_work(folder), "test", 1, lambda *_: None)
    plan = make_plan(STAGE, hashed, source)
    _settle(plan, folder, 1)
    return plan.identity


@pytest.mark.parametrize(("when", "older"), [("before", False), ("after", False), ("after", True)])
def test_death_at_every_durable_step_of_a_worker(few, tmp_path, when, older):
    """Before or after each fsync, rename and unlink of the first shards: what is committed is whole, and the next attempt ends
    with the same bytes; also where shards of an older recipe lie there, to be replaced."""
    source, whole = few
    if older:
        build(source, tmp_path / "older", dataclasses.replace(STAGE, rows=39))
    for at in range(1, 14):
        folder = tmp_path / str(at)
        if older:
            shutil.copytree(tmp_path / "older", folder)

        def work(at=at, folder=folder):
            plan = make_plan_in(source, folder)
            Steps(at, when)
            work_off(Task(STAGE, source, folder, plan))

        assert ended(fork(work)) == -signal.SIGKILL
        for path in folder.glob("*.tar"):
            record = read_committed(folder, path.stem)
            assert record is None or differences(*shard_files(folder, path.stem), record.written) == [], at
        build(source, folder)
        assert tree(folder) == whole, at


def test_death_at_every_durable_step_of_the_whole_command(few, tmp_path):
    source, whole = few
    steps = tmp_path / "count"

    def count():
        counter = Steps()
        build(source, tmp_path / "counted")
        steps.write_text(str(counter.count))

    assert ended(fork(count)) == 0
    last = int(steps.read_text())
    assert last > 30
    for at in (
        *range(1, 7),
        *range(last - 12, last + 1),
    ):  # freezing the plan, and finishing; the middle is tested above
        folder = tmp_path / str(at)

        def work(at=at, folder=folder):
            Steps(at, "after")
            build(source, folder)

        assert ended(fork(work)) == -signal.SIGKILL, at
        assert not (folder / "manifest.json").exists() or verify(folder)[1] == []
        build(source, folder)
        assert tree(folder) == whole, at


def test_the_same_command_again_changes_nothing(source, whole, tmp_path):
    build(source, tmp_path / "light")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "light").iterdir()}
    assert build(source, tmp_path / "light")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "light").iterdir()} == before


def changed_shards(folder: Path, change: Callable[[], LightStage | None], source: Path) -> set[str]:
    """The shards that are built again after ``change`` (by the inodes of their tars)."""
    before = {path.name: path.stat().st_ino for path in folder.glob("*.tar")}
    keep = [path.open("rb") for path in folder.glob("*.tar")]  # an open file's inode is not given to another
    stage = change() or STAGE
    built, _ = build(source, folder, stage)
    after = {path.name: path.stat().st_ino for path in folder.glob("*.tar")}
    for file in keep:
        file.close()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert built == len([name for name in changed if name in after])
    return changed


class OtherCode(LightStage):
    code = ("data_prep.shards:ShardWriter", "data_prep.shards:differences")


class OtherWeights(LightStage):
    codec_hash = "0123"


def test_exactly_what_depends_on_a_change_is_built_again(tmp_path):
    source, folder = write_source(tmp_path / "source"), tmp_path / "light"
    build(source, folder)
    everything = {path.name for path in folder.glob("*.tar")}
    where = {item.name: f"{shard.name}.tar" for shard in read_plan(folder).shards for item in shard.inputs}

    def content():
        (source / "train/n000.txt").write_text("1007")  # as long as before

    assert changed_shards(folder, content, source) == {where["n000"]}

    def touch():
        os.utime(source / "train/n001.txt", (1, 1))

    assert changed_shards(folder, touch, source) == set()

    def damage():
        raw = bytearray((folder / where["n002"]).read_bytes())
        raw[1000] ^= 1
        (folder / where["n002"]).write_bytes(raw)

    assert changed_shards(folder, damage, source) == {where["n002"]}
    assert changed_shards(folder, lambda: OtherCode("light", 3), source) == everything
    assert changed_shards(folder, lambda: STAGE, source) == everything
    assert changed_shards(folder, lambda: OtherWeights("light", 3), source) == everything
    assert changed_shards(folder, lambda: dataclasses.replace(STAGE, rows=41), source) == everything
    fresh = tmp_path / "fresh"
    build(source, fresh, dataclasses.replace(STAGE, rows=41))
    assert tree(folder) == tree(fresh)


def test_one_more_input_touches_one_shard_and_a_missing_one_leaves_no_trace(tmp_path):
    source, folder = write_source(tmp_path / "source", 24), tmp_path / "light"
    (source / "train/n001.txt").rename(tmp_path / "away.txt")
    build(source, folder)
    without = tree(folder)

    def add():
        (tmp_path / "away.txt").rename(source / "train/n001.txt")

    assert len(changed_shards(folder, add, source)) == 1

    def remove():
        (source / "train/n001.txt").unlink()

    assert len(changed_shards(folder, remove, source)) == 1
    assert tree(folder) == without


def test_shards_of_an_older_plan_are_removed(tmp_path):
    source, folder = write_source(tmp_path / "source"), tmp_path / "light"
    build(source, folder)
    for path in sorted((source / "train").iterdir())[3:]:
        path.unlink()
    build(source, folder)
    fresh = tmp_path / "fresh"
    build(source, fresh)
    assert tree(folder) == tree(fresh)
    assert len(list(folder.glob("train-*.tar"))) == 1


def test_code_version_sees_code_and_not_words(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "stage_code.py"

    def version(text: str, entry: str = "stage_code:used") -> str:
        path.write_text(text)
        return code_version([entry])

    used = 'def used(x):\n    """Says."""\n    return helper(x)\n\n'
    base = f"STEP = 2\n\n{used}def helper(x):\n    return x + STEP\n\ndef other():\n    return 1\n"
    first = version(base)
    assert version(base.replace("Says", "Tells").replace("    return h", "\n    # why\n    return h")) == first
    assert version(base.replace("return 1", "return 2")) == first, "what is not used does not count"
    assert version(base.replace("STEP = 2", "STEP = 3")) != first
    assert version(base.replace("x + STEP", "x - STEP")) != first
    assert version(base.replace("return 1", "return 2"), "stage_code") != version(base, "stage_code")


def test_bad_inputs_are_quarantined_and_capped(tmp_path):
    source, folder = write_source(tmp_path / "source", 30), tmp_path / "light"
    for name in ("train/n000", "valid/n004", "test/n005"):
        (source / f"{name}.txt").write_text("seven")
    _, quarantined = build(source, folder)
    assert [(entry["input"], entry["split"], entry["reason"]) for entry in quarantined] == [
        ("n000", "train", "not a number"),
        ("n004", "valid", "not a number"),
        ("n005", "test", "not a number"),
    ]
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == 3
    assert not any("n000" in path.read_bytes().decode("latin-1") for path in folder.glob("*.tar"))
    (source / "train/n001.txt").write_text("eight")
    with pytest.raises(RunFailed, match=r"4 of 30 inputs are bad, at most 3 may be(.|\n)*n001: not a number"):
        build(source, folder)
    assert not (folder / "manifest.json").exists()
    assert len(build(source, folder, failures=0.2)[1]) == 4
    for name in ("train/n000", "valid/n004", "test/n005", "train/n001"):
        (source / f"{name}.txt").write_text("9")
    assert build(source, folder)[1] == []
    assert not (folder / "quarantine.jsonl").exists()


def test_the_cap_allows_a_few_on_a_small_set_and_never_half():
    assert [allowed_failures(n, 0.05) for n in (1, 2, 3, 5, 7, 20, 60, 100, 1000)] == [0, 0, 1, 2, 3, 3, 3, 5, 50]
    assert allowed_failures(1000, 0) == 0


def test_a_set_without_training_samples_fails(tmp_path):
    source = write_source(tmp_path / "source")
    for path in (source / "train").iterdir():
        path.unlink()
    with pytest.raises(RunFailed, match="no training sample"):
        build(source, tmp_path / "light")


def test_a_group_in_two_splits_is_refused(tmp_path):
    source = write_source(tmp_path / "source")
    (source / "test/n000=again.txt").write_text("5")  # its group is what stands before the "="
    with pytest.raises(UserError, match="n000 lies in two splits"):
        build(source, tmp_path / "light")


def test_an_input_that_changes_under_way_stops_the_job(source, tmp_path):
    copy = write_source(tmp_path / "source")
    plan = make_plan_in(copy, tmp_path / "light")
    (copy / "train/n000.txt").write_text("1")
    with pytest.raises(InputChanged, match=r"n000\.txt has changed since the plan was made"):
        work_off(Task(STAGE, copy, tmp_path / "light", plan))


def test_another_plan_in_the_same_folder_stops_the_older_worker(source, tmp_path):
    plan = make_plan_in(source, tmp_path / "light")
    make_plan_in(write_source(tmp_path / "other", 12), tmp_path / "light")
    with pytest.raises(RunFailed, match="replaced by a preparation with other inputs"):
        work_off(Task(STAGE, source, tmp_path / "light", plan))


def test_a_full_disk_is_one_sentence_and_can_be_gone_on_from(source, whole, tmp_path):
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        f"sys.argv[1:] = {[str(source), str(tmp_path / 'light'), '1']!r}\n"
        "runpy.run_path('tests/data_prep/run_light.py', run_name='__main__')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", limited], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "File too large; once that is mended" in run.stderr
    assert "Traceback" not in run.stderr
    build(source, tmp_path / "light")
    assert tree(tmp_path / "light") == whole


def test_claims_of_the_dead_are_taken_and_those_of_the_living_are_not(tmp_path):
    first = claims.Claims(tmp_path)
    assert first.take("train-000000")
    second = claims.Claims(tmp_path)
    assert not second.take("train-000000")
    (tmp_path / "train-000001.claim").write_text(
        processes.token().rsplit("~", 1)[0] + "~12345"
    )  # our pid, another process
    assert second.take("train-000001")
    far = tmp_path / "train-000002.claim"
    far.write_text("elsewhere~1~1")
    assert not second.take("train-000002")
    os.utime(far, (1, 1))
    assert second.take("train-000002")
    first.close()
    second.close()
    assert not list(tmp_path.glob("*.clock"))


def test_one_process_holds_a_shard_in_writing_and_one_in_the_making(tmp_path):
    owner, other = claims.Claims(tmp_path), claims.Claims(tmp_path)
    assert owner.take("train-000000")
    assert owner.take("train-000001")
    assert not other.take("train-000000")
    owner.drop("train-000000")
    assert other.take("train-000000")
    assert not other.take("train-000001")
    owner.close()
    assert other.take("train-000001")
    other.close()
    assert not list(tmp_path.iterdir())


def test_a_shard_is_written_while_the_next_one_is_made(source, whole, tmp_path, monkeypatch):
    """The first shard's writing waits until the second one is being read: without the overlap that would be for ever."""
    second, log = threading.Event(), []
    make, write = worker.make, worker.write

    def making(task, shard):
        log.append(f"make {shard.name}")
        if len(log) > 1:
            second.set()
        return make(task, shard)

    def writing(*given):
        assert second.wait(30)
        write(*given)

    monkeypatch.setattr(worker, "make", making)
    monkeypatch.setattr(worker, "write", writing)
    build(source, tmp_path / "light")
    assert tree(tmp_path / "light") == whole


def test_what_goes_wrong_in_writing_stops_the_work(source, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "commit", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        build(source, tmp_path / "light")
    assert not list((tmp_path / "light" / WORK).glob("*.claim")), "all claims are given back"
    monkeypatch.undo()
    build(source, tmp_path / "light")
    assert tree(tmp_path / "light") == whole


def test_workers_are_born_with_one_thread_and_their_parent_keeps_its_own(source, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    prepare(ThreadsStage("threads", 3), source, tmp_path / "out", 1, 0.05)
    told = [json.loads(path.read_text())["summary"]["threads"] for path in (tmp_path / "out").glob("train-*.json")]
    assert told and set(told) == {"1"}
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_work_folder_goes_with_the_last_one_wherever_the_others_are(tmp_path):
    work = tmp_path / WORK
    claims.enter(work)
    far = work / "elsewhere~1~1.here"
    far.touch()
    claims.leave(work)
    assert sorted(path.name for path in work.iterdir()) == [far.name], "it has been heard of within a minute"
    claims.enter(work)
    os.utime(far, (1, 1))
    claims.leave(work)
    assert not work.exists()


def test_verify_names_every_kind_of_damage(source, tmp_path):
    folder = tmp_path / "light"
    build(source, folder)
    assert verify(folder)[1] == []
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        at = len(good) // 2
        for bad in (
            good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :],
            good[:at] + b"\xff" + good[at + 1 :],
            good[:-1],
            b"",
        ):
            path.write_bytes(bad)
            assert any(path.name in sentence for sentence in verify(folder)[1]), path.name
        path.write_bytes(good)
    (folder / "train-000000.tar").unlink()
    assert "train-000000.tar cannot be read" in " ".join(verify(folder)[1])


def test_records_are_read_only_when_whole(source, tmp_path):
    build(source, tmp_path / "light")
    path = tmp_path / "light/train-000000.json"
    assert read_committed(tmp_path / "light", "train-000000") is not None
    path.write_text("[]")
    assert read_committed(tmp_path / "light", "train-000000") is None
    path.write_bytes(path.read_bytes()[:1])
    assert read_committed(tmp_path / "light", "train-000000") is None
