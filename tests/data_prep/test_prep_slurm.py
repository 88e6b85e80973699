"""Preparation on a real scheduler: any number of tasks, more may join, any may die; the bytes are those of one undisturbed process."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from data_prep.demo_cocochorales import render
from data_prep.engine import prepare
from data_prep.finish import finish, verify
from data_prep.status import show_status
from jobs import profiles
from jobs.prepare_slurm import Request, describe, living_attempt, records_of, send
from pipeline.errors import UserError
from tests.cluster.cluster import Cluster
from tests.conftest import ROOT, command
from tests.data_prep.light_stage import LightStage, tree, write_source

STAGE = LightStage("light", 3)
PROFILE = f"""
scheduler: slurm
partition: gpu
time: "0:10:00"
cpus_per_gpu: 1
signal_seconds: 60
setup: ['export PYTHONPATH="{ROOT}"']  # the stage is the tests'
"""


class Lab:
    """A source, a folder, and the practice cluster with a profile of its own."""

    def __init__(self, slurm: Cluster, folder: Path, source: Path) -> None:
        self.slurm, self.source, self.folder = slurm, source, folder / "light"

    def send(self, tasks: int = 3, stage: LightStage = STAGE, **options: object) -> str:
        request = {"workers": 1, "time": None, "max_failures": 0.05} | options
        return send(Request(stage, self.source, self.folder, "practice", tasks, **request))[0]

    def ended(self, job: str, timeout: float = 90) -> str:
        self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout=timeout)
        return self.slurm.job(job).state

    def helpers(self) -> list[str]:
        attempt, _ = living_attempt(self.folder)
        return attempt.helpers

    def wait_commits(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("*-0*.json"))) < count:
            assert time.monotonic() < deadline, "\n".join(describe(self.folder)) + self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(p.read_text()[-800:] for p in sorted((records_of(self.folder) / "logs").glob("*_log.*")))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), 60)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "light"
    finish(STAGE, prepare(STAGE, source, folder, 0, 0.05)[0], folder)
    return tree(folder)


@pytest.fixture
def lab(slurm, source, tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/practice.yaml").write_text(PROFILE)
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / "profiles")
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LIGHT_SLEEP", "0.06")
    yield Lab(slurm, tmp_path, source)
    slurm.cancel_all()


def test_many_tasks_make_the_bytes_of_one_and_the_same_command_attaches_and_tops_up(lab, whole, capsys):
    last = lab.send(2)
    lab.wait_commits(1)
    assert lab.send(2) == last and len(lab.helpers()) == 1, "the same command queues nothing new"
    assert lab.send(4) == last and len(lab.helpers()) == 2, "more tasks join"
    show_status(lab.folder, describe(lab.folder))
    told = capsys.readouterr().out
    assert "not complete" in told and f"job {last}, which completes it: pending" in told, told
    with pytest.raises(UserError, match=rf"job {last} is preparing .* scancel"):
        lab.send(2, LightStage("light", 3, rows=41))
    assert lab.ended(last) == "COMPLETED", lab.logs()
    assert tree(lab.folder) == whole
    assert living_attempt(lab.folder) is None
    again = lab.send(1)
    assert again != last and lab.ended(again) == "COMPLETED", "complete already: looked at again, nothing built"
    assert tree(lab.folder) == whole


def test_tasks_die_in_every_way_and_nothing_is_lost(lab, whole):
    last = lab.send(4)
    (array,) = lab.helpers()
    lab.wait_commits(1)
    victims = [p for p in lab.slurm.tasks() if "submitit.core._submit" in " ".join(p.cmdline())]
    random.Random(3).choice(victims).send_signal(signal.SIGKILL)
    lab.slurm.run("scancel", f"{array}_1")
    lab.wait_commits(4)
    lab.slurm.crash(next(node for node in lab.slurm.nodes if lab.slurm.processes_of(node)), noticed=True)
    assert lab.ended(last) == "COMPLETED", lab.logs()
    assert tree(lab.folder) == whole


def test_the_last_job_builds_what_the_helpers_left_and_comes_back_at_its_time_limit(lab, whole):
    last = lab.send(2)
    (array,) = lab.helpers()
    lab.wait_commits(2)
    lab.slurm.run("scancel", array)
    lab.slurm.wait(last, "RUNNING", timeout=60)
    lab.wait_commits(len(list(lab.folder.glob("*-0*.json"))) + 2)
    lab.slurm.run("scancel", "--signal=USR2", last)
    lab.slurm.wait(last, "PENDING", "RUNNING", restarts=1, timeout=30)
    assert lab.ended(last) == "COMPLETED", lab.logs()
    assert tree(lab.folder) == whole


def test_too_many_bad_inputs_fail_the_last_job_and_the_status_says_why(lab, tmp_path):
    lab.source = write_source(tmp_path / "bad", 12)
    for path in sorted((lab.source / "train").iterdir())[:6]:
        path.write_text("seven")
    last = lab.send(1)
    assert lab.ended(last) == "FAILED"
    assert not (lab.folder / "manifest.json").exists()
    assert any(f"job {last} failed" in line and "inputs are bad" in line for line in describe(lab.folder))


def test_the_command_as_it_is_typed(slurm, tmp_path):
    list(render(tmp_path / "raw", 6, 1, workers=1))
    words = ("data_prep/prepare.py", "cocochorales", "--recipe", "cocochorales_simple_demo", "--out", tmp_path / "out")
    on_cluster = (*words, "--source", tmp_path / "raw", "--cluster", "practice", "--tasks", 1)
    sent = command(*on_cluster, "--workers", 1, env=slurm.environment)
    assert sent.returncode == 0, sent.stderr
    last = sent.stdout.strip()
    assert last == slurm.job(last).id, "on stdout the id of the job that others may wait for"
    assert f"completed by job {last}" in sent.stderr and "--status" in sent.stderr
    waited = command(*on_cluster, "--workers", 1, "--wait", env=slurm.environment)
    folder = tmp_path / "out/cocochorales_simple_demo"
    assert waited.returncode == 0 and waited.stdout.strip() == str(folder), waited.stderr
    assert verify(folder)[1] == [] and not [p for p in folder.iterdir() if p.name.startswith(".")]
    local = command(*words, "--source", tmp_path / "raw", "--cluster", "local")
    assert local.returncode == 2 and "'local' has no scheduler; leave --cluster out" in local.stderr


def test_where_no_controller_answers_the_files_are_still_read(lab, tmp_path, capsys, monkeypatch):
    prepare(STAGE, lab.source, lab.folder, 0, 0.05)
    lab.send(1)
    lab.slurm.cancel_all()
    nobody = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", lab.slurm.layout.conf.read_text()) + "MessageTimeout=1\n"
    for path in lab.slurm.layout.conf.parent.iterdir():
        (tmp_path / path.name).write_text(nobody if path == lab.slurm.layout.conf else path.read_text())
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / lab.slurm.layout.conf.name))
    show_status(lab.folder, describe(lab.folder))
    told = capsys.readouterr().out
    assert "controller does not answer" in told and "60 of 60 inputs" in told
    with pytest.raises(UserError, match="controller does not answer"):
        lab.send(1)


def test_what_cannot_be_queued_is_one_sentence(lab, monkeypatch):
    with pytest.raises(UserError, match="no node has 99 CPUs for one task; use fewer --workers"):
        lab.send(1, workers=99)
    with pytest.raises(UserError, match=r"array of 5000 tasks .* use fewer --tasks"):
        lab.send(5000)
    with pytest.raises(UserError, match="longer than the partition allows"):
        lab.send(1, time="99:00:00")
    with pytest.raises(UserError, match=r"no cluster 'practise' .* Did you mean 'practice'"):
        send(Request(STAGE, lab.source, lab.folder, "practise", 1, 1, None, 0.05))
    with monkeypatch.context() as elsewhere, pytest.raises(UserError, match="no sbatch on the PATH"):
        elsewhere.setenv("PATH", os.fspath(lab.source))
        lab.send(1)
