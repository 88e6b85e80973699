"""Launching as a user types it: one sentence for a mistake, the same run found again, changes recorded."""

import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from jobs import configs, planning
from jobs.cancel import interrupt
from jobs.clusters import load_cluster
from jobs.configs import load_frozen, load_named
from jobs.preflight import checkpoint_bytes, permission_problems
from jobs.trained import load_trained
from pipeline.checkpoint import trained_weights
from pipeline.config import differences, identity_of
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.manifest import MANIFEST, sealed, unsealed
from pipeline.runs import RunFolder, list_runs
from tests.conftest import ROOT, command

TINY = [
    "trainer.max_steps=12", "trainer.save_every=5", "trainer.validate_every=6", "trainer.log_every=1", "trainer.sample_every=null",
    "trainer.ema=0.99", "model.kl=1.0", "model.simple.width=16", "model.simple.gru=8", "data.batch_size=16", "model.barlow_twins_group=8",
]  # fmt: skip


def overrides(*changes: str) -> list[str]:
    return [word for change in (*TINY, *changes) for word in ("--set", change)]


def launch(*words: object, data, runs, changes=(), tiny=True, **kwargs):
    settings = overrides(*changes) if tiny else [w for c in changes for w in ("--set", c)]
    return command("jobs/launch.py", *words, *settings, "--cluster", "local", "--data", data, "--runs", runs, **kwargs)


@pytest.fixture(scope="module")
def finished(demo_data, tmp_path_factory):
    """A run of 12 steps on one process: (its folder, the runs root)."""
    runs = tmp_path_factory.mktemp("runs")
    done = launch("dismix_demo", data=demo_data, runs=runs)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(runs)
    assert done.stdout.splitlines()[-1] == str(run.path), "the run folder's path is the last line on stdout"
    return run, runs


def test_a_finished_run_has_everything_in_its_folder(finished):
    run, _ = finished
    assert run.last_end()["reason"] == "complete"
    for path in (
        run.config_file,
        run.code / "jobs" / "launch.py",
        run.lease_file,
        run.heartbeat_file,
        run.journal_file(1),
    ):
        assert path.is_file(), path
    assert {p.name for p in run.checkpoints.iterdir()} >= {"step_000000012"}
    assert (run.checkpoints / "step_000000012" / "ema.safetensors").is_file()


def test_what_describe_counts_is_what_was_written(finished, demo_data):
    """Preflight's estimate of a checkpoint against a real one."""
    run, _ = finished
    tree = {
        "config": load_frozen(run.config_file).model_dump(mode="json"),
        "data": str(demo_data / "cocochorales_simple_demo"),
    }
    words = [sys.executable, "-m", "jobs.describe", "--json"]
    told = subprocess.run(words, input=json.dumps(tree), capture_output=True, text=True, cwd=ROOT)
    written = sum(f.stat().st_size for f in (run.checkpoints / "step_000000012").glob("*.safetensors"))
    assert checkpoint_bytes(json.loads(told.stdout)) == pytest.approx(written, rel=0.05), told.stderr


def test_the_same_command_again_says_that_it_is_complete(finished, demo_data):
    run, runs = finished
    again = launch("dismix_demo", data=demo_data, runs=runs)
    assert again.returncode == 0 and "is complete at step 12" in again.stderr
    assert f"next: python jobs/evaluate.py {run.path}, " in again.stderr, "it would not be found by its name"
    named = launch("dismix_demo", data=demo_data, runs=runs, env={"SLURMPHONY_RUNS": str(runs)})
    assert f"next: python jobs/evaluate.py {run.name}, " in named.stderr
    assert again.stdout.splitlines()[-1] == str(run.path)


def test_more_steps_extend_the_same_run_and_new_makes_a_sibling(finished, demo_data, tmp_path):
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    more = launch("dismix_demo", data=demo_data, runs=tmp_path / "runs", changes=["trainer.max_steps=15"])
    assert more.returncode == 0 and "resuming after step 12" in more.stderr
    assert [r.name for r in list_runs(tmp_path / "runs")] == [run.name]
    sibling = launch("dismix_demo", "--new", "--dry-run", data=demo_data, runs=tmp_path / "runs")
    assert sibling.stdout.splitlines()[-1].endswith(f"{run.name}-2")


def test_resume_with_another_loss_weight_goes_on_and_records_it(finished, demo_data, tmp_path):
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    words = ["--resume", run.name]
    for change in ("model.kl=0.5", "trainer.max_steps=14", "optimizer.weight_decay=0.25", "optimizer.betas=[0.5, 0.9]"):
        words += ["--set", change]
    done = launch(*words, data=demo_data, runs=tmp_path / "runs", tiny=False)
    assert done.returncode == 0, done.stderr
    copy = RunFolder(tmp_path / "runs" / run.name)
    (changed,) = [e for e in copy.history() if e["event"] == "changed"]
    assert changed["after_step"] == 12 and changed["changes"]["model.kl"] == {"from": 1.0, "to": 0.5}
    assert "kl: 0.5" in copy.config_file.read_text()
    assert copy.last_end()["step"] == 14
    state = json.loads((copy.checkpoints / "step_000000014" / "state.json").read_text())
    (group,) = state["parts"]["optimizer.main"]["param_groups"]
    assert (group["weight_decay"], group["betas"]) == (0.25, [0.5, 0.9]), (
        "not what was stored: what the config says now"
    )


def test_what_a_resume_has_changed_stays_and_is_said(finished, demo_data, tmp_path):
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    copy = RunFolder(tmp_path / "runs" / run.name)
    frozen = yaml.safe_load(copy.config_file.read_text())
    frozen["optimizer"]["lr"] = 5e-5  # as --resume --set optimizer.lr=5e-5 leaves it
    copy.config_file.write_text(yaml.safe_dump(frozen))
    again = launch("dismix_demo", data=demo_data, runs=tmp_path / "runs")
    assert again.returncode == 0 and "goes on with optimizer.lr=5e-05, as a --resume left it" in again.stderr
    rate = load_named("dismix_demo").optimizer.lr
    for words in (["dismix_demo", "--set", f"optimizer.lr={rate}"], ["dismix_demo", "--grid", f"optimizer.lr={rate}"]):
        refused = launch(*words, data=demo_data, runs=tmp_path / "runs")
        assert refused.returncode == 2 and f"--resume {run.name}" in refused.stderr and "--new" in refused.stderr
    assert yaml.safe_load(copy.config_file.read_text()) == frozen


def test_a_stopped_run_that_is_further_than_asked_is_not_started(finished, demo_data, tmp_path):
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    copy = RunFolder(tmp_path / "runs" / run.name)
    copy.record("end", reason="terminated", step=12, gained=0)
    before = copy.history()
    behind = launch("dismix_demo", data=demo_data, runs=tmp_path / "runs", changes=["trainer.max_steps=5"])
    assert behind.returncode == 2 and "stands at step 12, and trainer.max_steps=5 is behind it" in behind.stderr
    assert copy.history() == before
    shown = launch("dismix_demo", "--dry-run", data=demo_data, runs=tmp_path / "runs", changes=["trainer.max_steps=20"])
    assert shown.returncode == 0 and "changed: trainer.max_steps 12 -> 20" in shown.stderr and copy.history() == before


def test_a_run_is_used_where_its_data_is_not(finished, demo_data, tmp_path):
    """On a laptop there is the run folder and nothing else."""
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    copy = RunFolder(tmp_path / "runs" / run.name)
    write_json(copy.launch_file, {**json.loads(copy.launch_file.read_text()), "data": str(tmp_path / "gone")})
    trained = load_trained(copy)
    assert trained.step == 12 and trained.module.data["instruments"]
    with pytest.raises(UserError, match=r"was trained on .*gone, which is not there; give the data root with --data"):
        trained.require_data()
    assert load_trained(copy, str(demo_data)).require_data() == demo_data / "cocochorales_simple_demo"
    with pytest.raises(UserError, match="--device nonsense"):
        load_trained(copy, device="nonsense")
    copy.data_file.unlink()
    with pytest.raises(UserError, match=r"data\.json is missing"):
        load_trained(copy)


def test_a_run_starts_from_another_ones_averages_and_says_of_which_step(finished, demo_data, tmp_path):
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    words = ("dismix_demo", "--set", f"init_from={run.name}")
    done = launch(*words, data=demo_data, runs=tmp_path / "runs", changes=["trainer.max_steps=1", "optimizer.lr=1e-30"])
    assert done.returncode == 0, done.stderr
    new = RunFolder(Path(done.stdout.splitlines()[-1]))
    (event,) = [e for e in new.history() if e["event"] == "started_from"]
    assert event["runs"] == {"init_from": {"run": run.name, "step": 12}}
    mine, averages = trained_weights(new.path, averaged=False)[0], trained_weights(run.path)[0]
    assert all(torch.equal(mine[name], averages[name]) for name in averages)


def test_a_config_on_top_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "CONFIGS", tmp_path)
    (tmp_path / "below.yaml").write_text((ROOT / "configs" / "dismix_demo.yaml").read_text())
    (tmp_path / "above.yaml").write_text("base: below\noptimizer: {lr: 0.5}\nseed: 7\n")
    (tmp_path / "round.yaml").write_text("base: again\n")
    (tmp_path / "again.yaml").write_text("base: round\n")
    below, above = load_named("below"), load_named("above")
    assert set(differences(below, above)) == {"optimizer.lr", "seed"} and above.optimizer.lr == 0.5
    for name in ("round", "again"):
        with pytest.raises(UserError, match="'base' names another config, not"):
            load_named(name)


@pytest.mark.parametrize("change", ["model.simple.width=32", "seed=3", "optimizer.name=adamw", "data.batch_size=32"])
def test_resume_with_another_architecture_data_or_seed_is_refused_with_the_difference(finished, demo_data, change):
    run, runs = finished
    done = launch("--resume", run.name, data=demo_data, runs=runs, changes=[change], tiny=False)
    key, value = change.split("=")
    assert done.returncode == 2 and key in done.stderr and "-> " in done.stderr and value in done.stderr
    assert "Traceback" not in done.stderr


def test_going_back_to_a_checkpoint_keeps_the_later_ones_aside(finished, demo_data, tmp_path):
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    wrong = launch("--resume", run.name, "--checkpoint", 7, data=demo_data, runs=tmp_path / "runs", tiny=False)
    assert wrong.returncode == 2 and "no checkpoint at step 7" in wrong.stderr and "12" in wrong.stderr
    back = ("--resume", run.name, "--checkpoint", 10, "--set", "trainer.log_every=2")
    done = launch(*back, data=demo_data, runs=tmp_path / "runs", tiny=False)
    assert done.returncode == 0 and "resuming after step 10" in done.stderr
    copy = RunFolder(tmp_path / "runs" / run.name)
    (changed,) = [e for e in copy.history() if e["event"] == "changed"]
    assert changed["after_step"] == 10, "the change is of the step that it goes back to"
    assert list((copy.path / "rewound").glob("*/step_000000012"))
    same = "checkpoints/step_000000012/model.safetensors"
    assert (copy.path / same).read_bytes() == (run.path / same).read_bytes(), "the same steps make the same weights"


def test_a_run_that_is_running_is_found_not_started_twice(finished, demo_data, tmp_path):
    run, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    copy = RunFolder(tmp_path / "runs" / run.name)
    attempt = copy.claim_attempt()  # this test's process is the writer
    copy.record("attempt", attempt=attempt, after_step=12)
    done = launch("dismix_demo", data=demo_data, runs=tmp_path / "runs", changes=["trainer.max_steps=99"])
    assert done.returncode == 0 and "is running on" in done.stderr and "--wait" in done.stderr
    assert len(list(copy.metrics.glob("attempt_*"))) == 2, "no further attempt"


@pytest.mark.parametrize(
    ("words", "changes", "expected"),
    [
        (["dismix_dem"], [], ["no config 'dismix_dem'", "Did you mean 'dismix_demo'?", "There are: "]),
        (["dismix_demo", "--then", "dismix_dem"], [], ["no config 'dismix_dem'", "Did you mean 'dismix_demo'?"]),
        (["dismix_demo", "--then", "dismix_simple"], [], ["no prepared data in", "--recipe cocochorales_simple"]),
        (["dismix_demo"], [f"seed={2**63}"], ["'seed'", "less than 9223372036854775808", str(2**63)]),
        (["dismix_demo"], ["trainer.max_step=3"], ["unknown key 'trainer.max_step'", "Did you mean 'max_steps'?"]),
        (["dismix_demo"], ["optimizer.lr=fast"], ["--set optimizer.lr=fast: 'optimizer.lr'", "valid number", "'fast'"]),
        (["dismix_demo"], ["data.recipe=slak"], ["'slak' is of no dataset", "Did you mean 'slakh'?", "fma, musicnet"]),
        (
            ["dismix_demo"],
            ["data.recipe=slakh_stem"],
            ["slakh has no recipe 'slakh_stem'", "Did you mean 'slakh_stems'?"],
        ),
        (
            ["dismix_demo", "--gpus", "3"],
            [],
            ["data.batch_size", "does not divide by 3 processes", "--set data.batch_size="],
        ),
        (["dismix_demo", "--nodes", "2"], [], ["--nodes 2 needs SLURM"]),
        (["dismix_demo", "--cluster", "nowhere"], [], ["no cluster 'nowhere'", "levante"]),
        (["dismix_demo", "--gpus", "0"], [], ["--gpus must be at least 1"]),
        ([], [], ["say what to launch"]),
        (["dismix_demo", "--checkpoint", "3"], [], ["--checkpoint goes with --resume"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(demo_data, tmp_path, words, changes, expected):
    settings = [word for change in changes for word in ("--set", change)]
    cluster = [] if "--cluster" in words else ["--cluster", "local"]
    done = command("jobs/launch.py", *words, *settings, *cluster, "--data", demo_data, "--runs", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in expected:
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was made"


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.mark.parametrize("after", range(8))
def test_a_launch_that_is_killed_while_it_makes_the_folder_can_be_typed_again(demo_data, tmp_path, monkeypatch, after):
    where = planning.Where("local", load_cluster("local"), 1, 1, str(demo_data), str(tmp_path))
    left = [after]

    def until_killed(write):
        def one(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return write(*args, **kwargs)

        return one

    with monkeypatch.context() as patch:
        for place, name in (
            (planning, "write_atomic"),
            (planning, "write_json"),
            (RunFolder, "record"),
            (planning.snapshot, "take"),
        ):
            patch.setattr(place, name, until_killed(getattr(place, name)))
        try:
            planning.prepare_folder(planning.plan_named("dismix_demo", [], where, new=False, dry=False), None)
        except Killed:
            assert after < 7
    plan = planning.plan_named("dismix_demo", [], where, new=False, dry=False)
    planning.prepare_folder(plan, None)
    assert (
        load_frozen(plan.run.config_file) == plan.config
        and plan.run.data_file.is_file()
        and plan.run.launch_file.is_file()
    )
    assert [e["event"] for e in plan.run.history()] == ["created", "code"]


def interrupt_as_nobody(run, pid, connection):
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        interrupt(pid, run)
    except UserError as error:
        connection.send(str(error))


def test_another_persons_run_is_not_stopped_and_that_is_said(tmp_path):
    run = RunFolder(tmp_path / "demo" / "0123abcd")
    foreign = os.getpid() if os.getuid() == 0 else 1
    ours, theirs = multiprocessing.Pipe()
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=interrupt_as_nobody, args=(run, foreign, theirs))
    child.start()
    child.join()
    assert ours.poll() and f"demo/0123abcd is trained by root (process {foreign}), whom you cannot stop" in ours.recv()


def test_a_figure_that_is_no_number_costs_neither_table_nor_file(finished, monkeypatch, capsys):
    import models.dismix.evaluate
    from jobs import evaluate

    run, runs = finished
    figures = {"correlation": {"value": math.nan, "low": -math.inf, "high": 1.0}, "hours": 1.0}
    monkeypatch.setattr(models.dismix.evaluate, "evaluate", lambda *_: figures)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", run.name, "--runs", str(runs)])
    assert evaluate.main() == 0
    told = capsys.readouterr().err
    assert "hours" in told and "no finite number, so null in the file: correlation.value, correlation.low\n" in told
    kept = json.loads(run.evaluation_file.read_text(), parse_constant=lambda word: pytest.fail(word))["figures"]
    assert kept == {"correlation": {"value": None, "low": None, "high": 1.0}, "hours": 1.0}


def test_a_refused_request_leaves_no_folder_but_one_that_was_there(finished, demo_data, tmp_path):
    run, runs = finished
    generate = ("jobs/generate.py", run.name, "--runs", runs, "--data", demo_data, "--sample", 10**6, "--out")
    for out in (tmp_path / "new", tmp_path):
        refused = command(*generate, out)
        assert refused.returncode == 2 and "1000000" in refused.stderr
    assert tmp_path.is_dir() and list(tmp_path.iterdir()) == []


def test_missing_data_names_the_prepare_command(tmp_path):
    done = launch("dismix_demo", data=tmp_path / "none", runs=tmp_path / "runs")
    assert done.returncode == 2
    assert "python data_prep/prepare.py cocochorales --source FOLDER --recipe cocochorales_simple_demo" in done.stderr
    assert (
        "make it with: python data_prep/demo.py cocochorales --out FOLDER && python data_prep/prepare.py" in done.stderr
    )


def test_shards_of_another_dataset_are_refused(demo_data, tmp_path):
    folder = tmp_path / "cocochorales_simple_demo"
    shutil.copytree(demo_data / "cocochorales_simple_demo", folder)
    manifest = unsealed((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(sealed({**manifest, "recipe": "slakh_stems"}))
    done = launch("dismix_demo", data=tmp_path, runs=tmp_path / "runs")
    assert done.returncode == 2 and "holds shards of slakh_stems" in done.stderr and "prepare" in done.stderr


def test_a_place_where_nothing_can_be_made_is_said(demo_data):
    done = launch("dismix_demo", data=demo_data, runs="/proc/runs")
    assert done.returncode == 2 and "cannot be made" in done.stderr and "--runs" in done.stderr


def found_problems(folder, connection):
    """In a child: become nobody where this is root, for whom nothing is forbidden."""
    if os.getuid() == 0:
        os.setuid(65534)
    connection.send(permission_problems(folder))


def test_no_permission_to_write_is_said(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=found_problems, args=(tmp_path / "closed" / "runs", theirs)
    )
    child.start()
    (sentence,) = ours.recv()
    child.join()
    assert "no permission to write in" in sentence and "--runs" in sentence


@pytest.mark.parametrize("name", ["dismix", "dismix_simple"])
def test_dry_run_prints_the_whole_script_without_data(tmp_path, name):
    began = time.monotonic()
    done = command(
        "jobs/launch.py", name, "--nodes", 1, "--gpus", 4, "--dry-run", "--data", tmp_path, "--runs", tmp_path
    )
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    for line in (
        "#!/bin/bash",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gres=gpu:4",
        "#SBATCH --requeue",
    ):
        assert line in done.stdout.splitlines()
    assert "srun " in done.stdout and "--kill-on-bad-exit=1" in done.stdout and 'PYTHONPATH="$RUN/code"' in done.stdout
    assert list(tmp_path.iterdir()) == []
    print(f"dry run: {took:.2f} s")


def test_a_profile_reaches_the_script(tmp_path):
    words = (
        "dismix",
        "--cluster",
        "levante",
        "--time",
        "1-02:00:00",
        "--dry-run",
        "--data",
        tmp_path,
        "--runs",
        tmp_path,
    )
    done = command("jobs/launch.py", *words)
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --constraint=a100_80",
        "#SBATCH --time=1560",
        "#SBATCH --exclusive",
    ):
        assert line in done.stdout.splitlines(), done.stdout
    assert "export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ib0}" in done.stdout, "what the person exported wins"
    wrong = command("jobs/launch.py", "dismix", "--cluster", "levante", "--time", "soon", "--dry-run")
    assert wrong.returncode == 2 and "H:MM:SS" in wrong.stderr


@pytest.mark.parametrize(("name", "part"), [("cd4mt_demo", "unet"), ("cqtml_demo", "body")])
def test_a_run_that_was_frozen_with_a_key_that_has_moved_is_read_and_is_the_same_run(tmp_path, name, part):
    config = load_named(name)
    for was in (False, True):
        tree = config.model_dump(mode="json")
        tree["model"][part]["gradient_checkpointing"] = was
        del tree["trainer"]["activation_checkpointing"]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        frozen = load_frozen(tmp_path / "config.yaml")
        assert frozen.trainer.activation_checkpointing is was
        assert identity_of(frozen, "data") == identity_of(config, "data")
    overruled = load_frozen(tmp_path / "config.yaml", ["trainer.activation_checkpointing=false"])
    assert overruled.trainer.activation_checkpointing is False
