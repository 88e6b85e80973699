"""CQTML's chain: pairs that a run draws, choices between them, comparisons sealed of those; queued on a real scheduler, and killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs import pairs_link
from jobs.chain import launch_chain
from jobs.choices import chosen, sealed
from jobs.clusters import load_cluster
from jobs.configs import PairsLink, load_link, load_named
from jobs.launch import parse
from jobs.pairs import make_pairs
from jobs.planning import Chain, Where, resolve_runs
from jobs.snapshot import PARTS
from models.cqtml.config import PairsConfig
from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.choices import UNDO, append_choice
from pipeline.config import identity_of
from pipeline.errors import UserError
from pipeline.files import append_line, write_json
from pipeline.manifest import read_manifest
from pipeline.runs import RunFolder, list_runs
from pipeline.samples import SplitReader
from tests.cluster.processes import wait_until
from tests.conftest import ROOT
from tests.models.cqtml_data import BODY, facts, write_songs
from tests.models.helpers import build, load

SECTION = PairsConfig(of="cqtml_demo", count=12, temperatures=(0.5, 2.0))
SHARDS = {"train": [3, 3], "valid": [2], "test": [2]}


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return write_songs(tmp_path_factory.mktemp("songs"), SHARDS)


@pytest.fixture
def run(songs, tmp_path):
    """A generator's run with one checkpoint."""
    config = load("cqtml_demo", *(f"model.body.{name}={value}" for name, value in BODY.items()))
    run = RunFolder(tmp_path / "runs" / "cqtml_demo" / "0123abcd")
    run.create()
    run.config_file.write_text(config.to_yaml())
    run.record("created")
    write_json(run.data_file, {"identity": songs.identity, "info": facts()})
    write_json(run.launch_file, {"data": str(songs.folder)})
    train(run, 5)
    return run


def train(run: RunFolder, step: int) -> None:
    weights = build(load("cqtml_demo", *(f"model.body.{n}={v}" for n, v in BODY.items())), seed=step).state_dict()
    checkpoint.save(run.checkpoints, Checkpoint(step, {"model": weights}, {}))


def choose(run: RunFolder, rater: str, pair: str, choice: str) -> None:
    append_choice(run.path, rater, pair, choice, seconds=2.5)


def keys(run: RunFolder, split: str) -> list[str]:
    manifest = read_manifest(run.path / "pairs")
    reader = SplitReader(manifest, split)
    return [reader.sample(i)["__key__"] for i in range(manifest.samples(split))]


def test_pairs_have_the_layout_that_the_page_and_the_reward_read(run, songs):
    manifest = make_pairs(run, SECTION, workers=0)
    assert {split: manifest.samples(split) for split in SHARDS} == {"train": 7, "valid": 3, "test": 2}
    samples = [SplitReader(manifest, "train").sample(i) for i in range(7)]
    for sample in samples:
        assert {name: (sample[name].dtype.name, sample[name].shape) for name in ("audio", "a", "b", "cqt")} == {
            "audio": ("int16", (8128,)), "a": ("float16", (4, 128)), "b": ("float16", (4, 128)), "cqt": ("float16", (2, 84, 128)),
        }  # fmt: skip
        meta = sample["meta"]
        assert set(meta) == {"input", "sample_rate", "frame_rate", "temperature", "left", "weights", "seed"}
        assert meta["sample_rate"] == 22050 and meta["frame_rate"] == 22050 / 64 and meta["left"] in "ab"
        assert set(meta["temperature"]) <= {0.5, 2.0} and sample["__key__"].startswith(meta["input"])
        assert not np.array_equal(sample["a"], sample["b"])
    assert {s["meta"]["left"] for s in samples} == {"a", "b"} and len(
        {tuple(s["meta"]["temperature"]) for s in samples}
    ) > 1
    assert manifest.info["mean"] == facts()["mean"] and manifest.info["of"] == run.name


def test_pairs_come_out_the_same_after_a_kill_and_are_drawn_anew_by_other_weights(run):
    first = make_pairs(run, SECTION, workers=0)
    judged = (run.path / "choices/scripted_judge.jsonl").read_text()
    for path in [
        *first.folder.glob("train-000001*"),
        first.folder / "manifest.json",
    ]:  # as a kill leaves it: a shard is missing
        path.unlink()
    (run.path / "choices/scripted_judge.jsonl").write_text("".join(judged.splitlines(True)[:5]) + '{"pair": "torn')
    assert not pairs_link.are_drawn(run, SECTION)
    assert make_pairs(run, SECTION, workers=0).identity == first.identity
    assert set(chosen(run)) == {k for split in SHARDS for k in keys(run, split)} and pairs_link.are_drawn(run, SECTION)
    train(run, 10)
    assert not pairs_link.are_drawn(run, SECTION)
    assert make_pairs(run, SECTION, workers=0).identity != first.identity


def test_what_people_rated_is_not_drawn_anew(run):
    make_pairs(run, SECTION, workers=0)
    choose(run, "ada", keys(run, "train")[0], "a")
    make_pairs(run, SECTION, workers=0)
    train(run, 10)
    with pytest.raises(UserError, match="drawn with other weights or settings, and ada rated it; move"):
        make_pairs(run, SECTION, workers=0)


def test_comparisons_are_what_raters_last_said(run, capsys):
    with pytest.raises(UserError, match=r"has no pairs to compare; make them: .* --pairs 1000"):
        sealed(run)
    make_pairs(run, SECTION.model_copy(update={"raters": "people"}), workers=0)
    with pytest.raises(UserError, match="nobody has compared"):
        sealed(run)
    first, second, third, *_ = keys(run, "train")
    for rater, pair, choice in [
        ("ada", first, "b"), ("ada", first, "a"), ("bo", first, "tie"), ("ada", second, "skip"), ("bo", third, "b"),
    ]:  # fmt: skip
        choose(run, rater, pair, choice)
    manifest = sealed(run)
    reader = SplitReader(manifest, "train")
    found = {sample["__key__"]: sample for sample in (reader.sample(i) for i in range(manifest.samples("train")))}
    assert {key: (float(s["choice"]), int(s["votes"])) for key, s in found.items()} == {
        first: (0.75, 2),
        third: (0.0, 1),
    }
    assert "audio" not in found[first] and found[first]["a"].dtype == np.float16
    assert sealed(run).folder == manifest.folder and manifest.info["pairs"]["train"] == 7
    choose(run, "bo", second, "a")
    assert sealed(run).samples("train") == 3 and sealed(run).folder != manifest.folder
    assert read_manifest(manifest.folder).samples("train") == 2  # an older reward keeps what it learned from
    choose(run, "bo", second, UNDO)
    append_line(run.path / "choices/eve.jsonl", {"pair": first, "choice": "maybe"})
    assert sealed(run).folder == manifest.folder, "what was taken back, and what is no choice, does not count"
    assert "eve.jsonl: 1 line left out" in capsys.readouterr().err


def test_a_chain_stops_for_people_and_says_how_to_go_on(run, capsys, monkeypatch):
    monkeypatch.setattr("jobs.chain.load_link", with_people)
    words = ["cqtml_demo_pairs", "--then", "cqtml_demo_reward", "--runs", str(run.path.parent.parent)]
    where = Where(
        "local",
        load_cluster("local"),
        1,
        1,
        str(Path(json.loads(run.launch_file.read_text())["data"]).parent),
        words[-1],
    )
    link = launch_chain(parse(words), where)
    assert link.code == 0 and len(list_runs(where.runs_root)) == 1
    told = capsys.readouterr().err
    assert "python monitoring/compare.py" in told and "python jobs/launch.py cqtml_demo_reward" in told


def with_people(name, overrides=()):
    link = load_link(name, overrides)
    if isinstance(link, PairsLink):
        return link.model_copy(update={"pairs": SECTION.model_copy(update={"raters": "people"})})
    return link


def test_names_in_a_chain_are_its_own_runs(run, tmp_path):
    root, other = run.path.parent.parent, RunFolder(tmp_path / "runs" / "cqtml_demo_reward" / "89abcdef")
    chain = Chain().after("cqtml_demo", run).after("cqtml_demo_reward", other)
    config = resolve_runs(load_named("cqtml_demo_policy"), root, chain)
    assert (config.init_from, config.model.reward) == (run.name, other.name)
    assert resolve_runs(load_named("cqtml_demo_reward"), root, chain).data.of == run.name
    assert identity_of(config, "data") != identity_of(load_named("cqtml_demo_policy"), "data")
    with pytest.raises(UserError, match="no run 'cqtml_demo_reward'"):
        resolve_runs(load_named("cqtml_demo_policy"), root, Chain(runs={"cqtml_demo": run}))


@pytest.mark.parametrize(
    "words, told",
    [
        (["cqtml_demo", "--use", "nonsense"], "--use takes NAME=RUN"),
        (["cqtml_demo", "--use", "cqtml=cqtml/00000000"], "no run 'cqtml/00000000'"),
        (["cqtml_demo_pairs", "--set", "pairs.count=0"], "'pairs.count'"),
        (["cqtml_demo_pairs", "--set", "pairs.temperatures=[0]"], "greater than 0"),
        (["cqtml_demo_pairs", "--set", "pairs.rater=people"], "Did you mean 'pairs.raters'|Did you mean 'raters'"),
    ],
)
def test_a_mistake_is_one_sentence(run, words, told):
    words = [*words, "--runs", str(run.path.parent.parent), "--data", str(run.path)]
    with pytest.raises(UserError, match=told):
        launch_chain(parse(words), Where("local", load_cluster("local"), 1, 1, str(run.path), words[-3]))


def test_what_trains_nothing_is_not_described_as_a_training():
    with pytest.raises(UserError, match="cqtml_pairs trains nothing, it makes pairs"):
        load_named("cqtml_pairs")


# -- the whole chain ------------------------------------------------------------------------------------------------------

TINY = {
    "cqtml_tiny": {"base": "cqtml_demo", "model": {"body": BODY}, "data": {"batch_size": 4}},
    "cqtml_tiny_pairs": {"pairs": {"of": "cqtml_tiny", "count": 12}},
    "cqtml_tiny_reward": {
        "base": "cqtml_demo_reward", "data": {"of": "cqtml_tiny", "batch_size": 4},
        "model": {"reward_model": {"width": 16}, "least_comparisons": 4},
    },
    "cqtml_tiny_policy": {
        "base": "cqtml_demo_policy", "data": {"batch_size": 4}, "init_from": "cqtml_tiny",
        "model": {"body": BODY, "reward_model": {"width": 16}, "reward": "cqtml_tiny_reward", "grpo": {"group": 2}},
    },
}  # fmt: skip
CHAIN = ["cqtml_tiny", "--then", "cqtml_tiny_pairs", "--then", "cqtml_tiny_reward", "--then", "cqtml_tiny_policy"]


@pytest.fixture
def project(tmp_path):
    """A copy of the project with configurations for seconds."""
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / "project" / part, ignore=shutil.ignore_patterns("__pycache__"))
    budget = {"max_steps": 4, "save_every": 2, "validate_every": 4, "sample_every": None, "log_every": 2}
    for name, tree in TINY.items():
        tree = tree if "pairs" in tree else {**tree, "trainer": budget}
        (tmp_path / "project" / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "project"


def launch(project: Path, songs, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    line = [
        sys.executable,
        "jobs/launch.py",
        *CHAIN,
        "--data",
        str(songs.folder.parent),
        "--runs",
        str(project.parent / "runs"),
    ]
    surroundings = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(
        [*line, *words], cwd=project, env=surroundings, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def check_complete(runs: Path) -> None:
    by_name = {run.path.parent.name: run for run in list_runs(runs)}
    assert set(by_name) == {"cqtml_tiny", "cqtml_tiny_reward", "cqtml_tiny_policy"}
    assert all(run.last_end()["reason"] == "complete" for run in by_name.values())
    policy = load_named_frozen(by_name["cqtml_tiny_policy"])
    assert policy["init_from"] == by_name["cqtml_tiny"].name
    assert policy["model"]["reward"] == by_name["cqtml_tiny_reward"].name
    assert load_named_frozen(by_name["cqtml_tiny_reward"])["data"]["of"] == by_name["cqtml_tiny"].name
    assert len(chosen(by_name["cqtml_tiny"])) == 12
    started = next(e for e in by_name["cqtml_tiny_policy"].history() if e["event"] == "started_from")
    assert set(started["runs"]) == {"init_from", "reward"}


def load_named_frozen(run: RunFolder) -> dict:
    return yaml.safe_load(run.config_file.read_text())


def test_on_slurm_the_chain_is_queued_at_once_and_launches_what_it_could_not_plan(slurm, project, songs):
    words = ("--cluster", "practice", "--gpus", "1", "--no-preflight")
    queued = launch(project, songs, *words, env=slurm.environment)
    _, told = queued.communicate(timeout=120)
    assert queued.returncode == 0, told
    assert "cqtml_tiny_reward then cqtml_tiny_policy will be launched by job" in told
    again = launch(project, songs, *words, env=slurm.environment)
    _, told_again = again.communicate(timeout=120)
    assert again.returncode == 0 and not re.search("(?<!is )queued as job", told_again), told_again  # nothing twice
    runs = project.parent / "runs"

    def over() -> bool:
        complete = {
            run.path.parent.name for run in list_runs(runs) if (run.last_end() or {}).get("reason") == "complete"
        }
        return "cqtml_tiny_policy" in complete or not any(job.live for job in slurm.jobs())

    assert wait_until(over, 400, 0.5), slurm.jobs()
    logs = [p.read_text()[-1500:] for p in [*runs.glob("*/*/logs/*_log.*"), *runs.glob("*/*/pairs_jobs/logs/*_log.*")]]
    assert (runs / "cqtml_tiny_policy").exists(), "\n".join(logs)
    check_complete(runs)


@pytest.mark.soak  # four trainings' imports, some of them twice
@pytest.mark.parametrize("event", ["cqtml_tiny", "pairs", "cqtml_tiny_reward", "cqtml_tiny_policy"])
def test_here_a_chain_that_is_killed_goes_on(project, songs, event):
    runs = project.parent / "runs"
    words = ("--cluster", "local", "--gpus", "1", "--no-preflight")
    first = launch(project, songs, *words)
    deadline = time.monotonic() + 300
    while not (list(runs.glob("*/*/pairs")) if event == "pairs" else list(runs.glob(f"{event}/*/history.jsonl"))):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = launch(project, songs, *words)
    _, told = again.communicate(timeout=600)
    assert again.returncode == 0, told
    check_complete(runs)
