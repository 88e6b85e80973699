"""Faults planted on both sides: each is found, none else, the good side is named, and repair takes the file from it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from pipeline.errors import RunFailed, UserError
from sync import pull as pull_module
from sync import verify as verify_module
from tests.monitoring.run_factory import grow
from tests.sync.cluster_runs import RUN, add_checkpoint, content, whole_run, with_environment
from tests.sync.far_side import FarSide

ALL = "metrics,samples,logs,code,checkpoints"


def pull(far: FarSide, *words: object) -> None:
    assert pull_module.main(["faraway", *map(str, words), "--to", str(far.here / "pulled")]) == 0


def verify(far: FarSide, capsys, *words: object) -> tuple[int, list[str]]:
    """Exit code and the lines of faults, with all that is at hand."""
    capsys.readouterr()
    where = ("--to", str(far.here / "pulled"), "--runs", str(far.here / "own"))
    code = verify_module.main([*map(str, words), *where])
    return code, capsys.readouterr().out.splitlines()


def wide_run(far: FarSide, files: int):
    run = whole_run(far)
    for number in range(files):
        (run.samples / f"{number:04d}.wav").write_bytes(os.urandom(200))
    return run


def flip(path: Path, draw: random.Random) -> None:
    """One bit, size and time as before: what rsync's own look cannot see."""
    stamp, raw = path.stat(), bytearray(path.read_bytes())
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def truncate(path: Path, draw: random.Random) -> None:
    stamp = path.stat()
    os.truncate(path, draw.randrange(path.stat().st_size))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def plant(far: FarSide, count: int, draw: random.Random) -> set[str]:
    """``count`` faults of four kinds on both sides, each on a file of its own; the lines they must be told in."""
    names = sorted(content(far.pulled))
    draw.shuffle(names)
    told = set()
    for number in range(count):
        name = names.pop()
        while "/code/" in name or name.endswith("MANIFEST.json"):  # a flip there is tested by itself
            name = names.pop()
        kind = ("flip", "missing", "truncated", "extra")[number % 4]
        here = kind == "extra" or draw.random() < 0.5
        path = (far.pulled if here else far.runs) / name
        good = "here; good on faraway" if here else "on faraway; good here"
        match kind:
            case "flip":
                flip(path, draw)
                told.add(f"{name}: damaged {good}")
            case "truncated":
                truncate(path, draw)
                told.add(f"{name}: truncated {good}")
            case "missing":
                path.unlink()
                told.add(f"{name}: missing {good}")
            case "extra":
                extra = path.with_name(f"{path.name}.extra")
                extra.write_bytes(b"x")
                told.add(f"{name}.extra: extra: only here, and in no manifest; it stays as it is")
    return told


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
@pytest.mark.parametrize("environment", [False, True], ids=["blake2b there", "xxh3 there"])
def test_each_of_100_faults_is_found_and_none_else_and_mended(far: FarSide, capsys, environment, seed):
    if environment:
        with_environment(far)
    wide_run(far, 120)
    pull(far, "--only", ALL)
    assert verify(far, capsys, "faraway") == (0, []) and verify(far, capsys) == (0, [])
    before = content(far.runs)
    told = plant(far, 100, random.Random(seed))
    assert len(told) == 100
    code, lines = verify(far, capsys, "faraway")
    assert set(lines) == told and len(lines) == 100 and code == 1
    _, offline = verify(far, capsys)
    assert {line.partition(":")[0] for line in offline} == {
        line.partition(":")[0] for line in told if "good here" not in line
    }
    code, lines = verify(far, capsys, "faraway", "--repair")
    extra = {line for line in told if ": extra" in line}
    assert code == 1 and set(lines[100:]) == extra, "what is only here stays, and is told"
    assert content(far.runs) == before
    left = {name: payload for name, payload in content(far.pulled).items() if not name.endswith(".extra")}
    assert left == before
    pull(far, "--only", ALL, "--dry-run")
    assert capsys.readouterr().out == f"{far.pulled}\n", "a repair leaves nothing to pull"


def test_a_run_that_lost_its_config_there_gets_it_back(far: FarSide, capsys):
    """Nothing there takes it for a run any more; its files are judged, and mended, all the same."""
    run = whole_run(far)
    pull(far)
    before = content(far.runs)
    run.config_file.unlink()
    flip(run.figures / "swap.png", random.Random(3))
    (far.pulled / RUN / "samples/step_000000100/mixture.png").unlink()
    assert verify(far, capsys, "faraway") == (
        1,
        [
            f"{RUN}/config.yaml: missing on faraway; good here",
            f"{RUN}/figures/swap.png: damaged on faraway; good here",
            f"{RUN}/samples/step_000000100/mixture.png: missing here; good on faraway",
        ],
    )
    assert verify(far, capsys, "faraway", "--repair")[0] == 0 and content(far.runs) == before
    shutil.rmtree(run.path)
    assert verify(far, capsys, "faraway") == (0, []), "removed altogether is no fault"


def test_a_flip_in_a_manifest_accuses_no_other_file(far: FarSide, capsys):
    whole_run(far)
    pull(far, "--only", "checkpoints")
    name = f"{RUN}/checkpoints/step_000000010/MANIFEST.json"
    raw = (far.pulled / name).read_bytes()
    at = raw.index(b"xxh3_128") + 13
    (far.pulled / name).write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    assert verify(far, capsys) == (1, [f"{name}: damaged here; ask the cluster: python sync/verify.py HOST"])
    assert verify(far, capsys, "faraway", "--repair")[0] == 0 and (far.pulled / name).read_bytes() == raw


def test_a_checkpoint_that_was_damaged_before_it_came_is_good_nowhere(far: FarSide, capsys):
    with_environment(far)
    run = whole_run(far)
    flip(run.checkpoints / "step_000000010" / "model.safetensors", random.Random(1))
    pull(far, "--only", "checkpoints")
    name = f"{RUN}/checkpoints/step_000000010/model.safetensors"
    assert verify(far, capsys, "faraway") == (
        1,
        [f"{name}: damaged {where}; no side is known to be good" for where in ("here", "on faraway")],
    )


def test_a_cluster_that_goes_on_is_no_fault(far: FarSide, capsys):
    run = whole_run(far)
    pull(far, "--only", ALL)
    grow(run, range(21, 30))
    run.record("queued", job_id="9")
    (run.samples / "step_000000100" / "mixture.png").write_bytes(b"a new picture")
    add_checkpoint(run, 30)
    for path in (run.checkpoints / "step_000000010").iterdir():
        path.unlink()
    (run.checkpoints / "step_000000010").rmdir()
    assert verify(far, capsys, "faraway") == (0, [])


def test_runs_made_here_are_checked_by_what_the_training_wrote(far: FarSide, capsys):
    run = whole_run(far)
    (far.here / "own").mkdir()
    run.path.parent.rename(far.here / "own" / "dismix_demo")
    folder = far.here / "own" / RUN / "checkpoints" / "step_000000010"
    assert verify(far, capsys) == (0, [])
    (folder / "stray.safetensors").write_bytes(b"x")
    flip(folder / "model.safetensors", random.Random(2))
    (folder / "state.json").unlink()
    code, lines = verify(far, capsys, RUN)
    assert code == 1 and [line.removeprefix(f"{RUN}/checkpoints/step_000000010/").partition(";")[0] for line in lines] == [
        "model.safetensors: damaged here", "state.json: missing here", "stray.safetensors: extra: only here, and in no manifest",
    ]  # fmt: skip
    (folder / "MANIFEST.json").write_text("{")
    code, lines = verify(far, capsys)
    assert code == 1 and f"{RUN}/checkpoints/step_000000010/MANIFEST.json: damaged here" in lines[0]


def test_a_run_that_lost_everything_here_comes_back(far: FarSide, capsys):
    whole_run(far)
    pull(far)
    before = content(far.pulled)
    (far.pulled / RUN).rename(far.here / "gone")
    code, lines = verify(far, capsys)
    assert code == 1 and len(lines) == len(before)
    assert verify(far, capsys, "faraway", "--repair")[0] == 0 and content(far.pulled) == before


def test_nothing_is_sent_into_a_run_that_is_being_written(far: FarSide, capsys):
    run = whole_run(far)
    run.beat(step=20)
    pull(far)
    (run.samples / "step_000000100" / "mixture.png").unlink()
    with pytest.raises(RunFailed, match="is being written on faraway"):
        verify(far, capsys, "faraway", "--repair")
    os.utime(run.heartbeat_file, (1e9, 1e9))
    assert verify(far, capsys, "faraway", "--repair")[0] == 0
    assert (run.samples / "step_000000100" / "mixture.png").is_file()


def test_a_damaged_record_is_told(far: FarSide, capsys):
    whole_run(far)
    pull(far)
    file = far.pulled / ".sync" / "records" / f"{RUN}.json"
    file.write_bytes(file.read_bytes()[:-30])
    code, lines = verify(far, capsys)
    assert code == 1 and lines[0].startswith(f"{RUN}/.sync/records/{RUN}.json: damaged here")
    pull(far)
    assert verify(far, capsys) == (0, [])


def test_users_mistakes_are_one_sentence(far: FarSide, capsys):
    with pytest.raises(UserError, match=r"python sync/verify.py HOST --repair"):
        verify(far, capsys, "--repair")
    with pytest.raises(UserError, match=r"'farawya' is no profile.*Did you mean 'faraway'"):
        verify(far, capsys, "farawya")
    with pytest.raises(UserError, match=r"type: python sync/pull.py faraway"):
        verify(far, capsys, "faraway")
    assert verify(far, capsys) == (0, [])
