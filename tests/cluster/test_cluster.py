"""The practice cluster is a SLURM: it schedules, times out, preempts, requeues, survives a node; and it goes without a trace."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import RunFailed, UserError
from tests.cluster import fixtures, layout
from tests.cluster.cluster import Cluster
from tests.cluster.jobs import expand
from tests.cluster.processes import name_of, wait_until

ROOT = Path(__file__).resolve().parents[2]
SLEEP = "srun sleep 300"


def script(folder: Path, *lines: str, name: str = "job.sh") -> Path:
    path = folder / name
    path.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    return path


def task_with(folder: Path, trap: str) -> str:
    """Command line of a task that does ``trap`` and else nothing for ever."""
    return f"bash {script(folder, trap, 'echo ready', 'while :; do sleep 0.1; done', name='task.sh')}"


def queue(cluster: Cluster, folder: Path, *lines: str, options: tuple[str, ...] = ()) -> str:
    """Queue a batch job of these lines; its output goes to ``folder/out``, over all its starts."""
    words = (f"--output={folder}/out", "--open-mode=append", "--requeue", *options)
    return cluster.sbatch(*words, script(folder, *lines))


def said(folder: Path) -> list[str]:
    """What jobs echoed; what SLURM and bash print between has a colon or a capital."""
    out = folder / "out"
    lines = out.read_text().splitlines() if out.exists() else []
    return [line for line in lines if ":" not in line and not line[:1].isupper()]


@pytest.fixture
def folder():
    """A folder for one more cluster; pytest's own are too long a path for SLURM's sockets."""
    fixtures.require_slurm(accounting=False)
    path = fixtures.new_folder()
    yield path
    Cluster(path).down()
    shutil.rmtree(path)


def python_m(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.cluster", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


def test_eight_tasks_on_two_nodes_see_their_gpus(slurm):
    told = slurm.run(
        "srun", "-N2", "--ntasks-per-node=4", "--gres=gpu:4", "printenv", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"
    )
    lines = told.stdout.split()
    assert lines.count("0,1,2,3") == 8
    assert [lines.count(node) for node in slurm.nodes] == [4, 4, 0]


def test_two_jobs_on_a_node_have_different_gpus(slurm, tmp_path):
    wait = f"echo $CUDA_VISIBLE_DEVICES; until [ -e {tmp_path}/done ]; do sleep 0.1; done"
    options = ("--gres=gpu:2", f"--nodelist={slurm.nodes[0]}")
    both = [queue(slurm, tmp_path, wait, options=options) for _ in range(2)]
    assert wait_until(lambda: len(said(tmp_path)) == 2, 10)
    (tmp_path / "done").touch()
    assert sorted(said(tmp_path)) == ["0,1", "2,3"]
    assert [slurm.wait(job, "COMPLETED").exit_code for job in both] == ["0:0", "0:0"]


def test_a_nodes_name_is_an_address_that_answers(slurm):
    for node in slurm.nodes:
        with (
            socket.create_server((socket.gethostbyname(node), 0)) as server,
            socket.create_connection(server.getsockname()),
        ):
            pass


def test_a_requeued_job_keeps_its_number_and_counts_its_starts(slurm, tmp_path):
    job = queue(slurm, tmp_path, "echo start ${SLURM_RESTART_COUNT:-none}", SLEEP)
    assert wait_until(lambda: said(tmp_path) == ["start none"], 10)
    slurm.run("scontrol", "requeue", job)
    slurm.wait(job, "RUNNING", restarts=1)
    assert wait_until(lambda: said(tmp_path) == ["start none", "start 1"], 10)


def test_a_time_limit_ends_a_job(slurm, tmp_path):
    job = queue(slurm, tmp_path, SLEEP)
    slurm.wait(job, "RUNNING")
    slurm.time_out(job, 1)
    slurm.wait(job, "TIMEOUT", timeout=60)
    assert slurm.tasks() == []


def test_a_signal_reaches_the_steps(slurm, tmp_path):
    task = task_with(tmp_path, "trap 'echo warned' USR2")
    job = queue(slurm, tmp_path, f"srun {task}", options=("-n2",))
    assert wait_until(lambda: said(tmp_path) == ["ready"] * 2, 10)
    slurm.run("scancel", "--signal=USR2", job)
    assert wait_until(lambda: said(tmp_path) == ["ready"] * 2 + ["warned"] * 2, 10)
    assert slurm.job(job).state == "RUNNING"


def test_high_priority_takes_the_nodes_of_low_which_comes_back(slurm, tmp_path):
    """A preempted job that ends within its grace is over for SLURM, unless it asks to be queued again, as ours do."""
    everything = ("-N3", "--gres=gpu:4")
    task = task_with(tmp_path, "trap 'scontrol requeue $SLURM_JOB_ID; exit' TERM")
    lines = ("echo low ${SLURM_RESTART_COUNT:-0}", f"srun -N1 -n1 {task}")
    low = queue(slurm, tmp_path, *lines, options=(*everything, "--partition=low"))
    assert wait_until(lambda: said(tmp_path) == ["low 0", "ready"], 10)
    high = queue(slurm, tmp_path, "echo high", options=(*everything, "--partition=high"))
    slurm.wait(high, "COMPLETED", timeout=20)
    slurm.wait(low, "RUNNING", restarts=1)
    assert wait_until(lambda: said(tmp_path) == ["low 0", "ready", "high", "low 1", "ready"], 10)


def test_gpu_is_not_preempted(slurm, tmp_path):
    everything = ("-N3", "--gres=gpu:4")
    job = queue(slurm, tmp_path, SLEEP, options=everything)
    slurm.wait(job, "RUNNING")
    high = queue(slurm, tmp_path, "true", options=(*everything, "--partition=high"))
    time.sleep(2)
    assert (slurm.job(job).state, slurm.job(high).state) == ("RUNNING", "PENDING")


def test_a_power_cut_kills_the_node_and_the_job_goes_on_elsewhere(slurm, tmp_path):
    # The task leaves its parents and drops its environment, as daemons do: the power cut must find it all the same.
    task = "env -i setsid sleep 300 >&- 2>&- & echo started; exec sleep 300"
    job = queue(slurm, tmp_path, f"srun bash -c '{task}'", options=("-N2", "--gres=gpu:4"))
    first = slurm.wait(job, "RUNNING").nodes
    assert wait_until(lambda: said(tmp_path) == ["started"] * 2, 10)
    began = time.monotonic()
    slurm.crash(first[0], noticed=True)
    assert time.monotonic() - began < 2
    assert not slurm.processes_of(first[0])
    second = slurm.wait(job, "RUNNING", restarts=1).nodes
    assert first[0] not in second and len(second) == 2
    slurm.cancel_all()
    slurm.revive(first[0])
    assert slurm.run("srun", f"--nodelist={first[0]}", "echo", "back").stdout == "back\n"


@pytest.mark.soak  # up to a minute of waiting
def test_a_power_cut_is_noticed(slurm, tmp_path):
    job = queue(slurm, tmp_path, SLEEP, options=("-N2", "--gres=gpu:4"))
    slurm.crash(slurm.wait(job, "RUNNING").nodes[0])
    slurm.wait(job, "RUNNING", restarts=1, timeout=90)


def test_where_only_slurmd_dies_the_tasks_run_on(slurm, tmp_path):
    job = queue(slurm, tmp_path, SLEEP)
    (node,) = slurm.wait(job, "RUNNING").nodes
    assert wait_until(lambda: any(name_of(task) == "sleep" for task in slurm.tasks()), 10)
    slurm.kill_slurmd(node)
    assert any(name_of(task) == "sleep" for task in slurm.tasks())
    slurm.revive(node)
    assert slurm.job(job).state == "RUNNING" and slurm.job(job).restarts == 0


def test_jobs_outlive_the_controller(slurm, tmp_path):
    job = queue(slurm, tmp_path, f"until [ -e {tmp_path}/done ]; do sleep 0.1; done")
    slurm.wait(job, "RUNNING")
    with slurm.without_controller():
        assert not slurm.is_up
        with pytest.raises(RunFailed, match="DOWN"):
            slurm.run("scontrol", "ping")
    (tmp_path / "done").touch()
    slurm.wait(job, "COMPLETED")


@pytest.mark.parametrize(
    "words, answer",
    [
        (["--partition=nowhere"], "Invalid partition name specified"),
        (["--gres=gpu:5"], "Requested node configuration is not available"),
        (["--time=2:00:00"], "Requested time limit is invalid"),
        (["--nodes=4"], "Node count specification invalid"),
    ],
)
def test_what_cannot_be_is_refused_at_once(slurm, words, answer):
    refused = slurm.run("sbatch", *words, "--wrap", "true", check=False)
    assert refused.returncode == 1 and answer in refused.stderr


def test_accounting_remembers(slurm_accounting, tmp_path):
    job = queue(slurm_accounting, tmp_path, "srun true", options=("--account=practice",))
    slurm_accounting.wait(job, "COMPLETED")

    def told():
        return slurm_accounting.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobID,State,Account").stdout

    assert wait_until(lambda: told() == f"{job}|COMPLETED|practice\n", 20, 0.2), told()


@pytest.mark.parametrize("wrong", ["account", "qos"])
def test_accounts_are_enforced(slurm_accounting, wrong):
    refused = slurm_accounting.run("sbatch", f"--{wrong}=nobody", "--wrap", "true", check=False)
    assert refused.returncode == 1 and f"Invalid {wrong}" in refused.stderr


def test_by_hand_up_status_down(folder):
    up = python_m("up", "--dir", folder)
    assert up.returncode == 0, up.stderr
    assert re.fullmatch(rf"export SLURM_CONF={folder}/\S+\n", up.stdout)
    again = python_m("up", "--dir", folder)
    assert again.stdout == up.stdout and "already" in again.stderr
    other = python_m("up", "--dir", folder, "--accounting")
    assert other.returncode == 2 and "down first" in other.stderr
    typed = subprocess.run(["bash", "-c", f"{up.stdout.strip()}; srun -N3 echo hello"], capture_output=True, text=True)
    assert typed.stdout == "hello\n" * 3
    assert "idle" in python_m("status", "--dir", folder).stdout
    running = Cluster(folder).processes()
    assert len(running) >= 8  # munged, slurmctld, three nodes with a slurmd each
    assert python_m("down", "--dir", folder).returncode == 0
    assert not any(process.is_running() and process.status() != "zombie" for process in running)
    assert python_m("status", "--dir", folder).returncode == 1
    assert python_m("down", "--dir", folder).returncode == 0


def test_two_clusters_do_not_meet(slurm, folder, tmp_path):
    other = Cluster(folder)
    other.up()
    job = queue(other, tmp_path, SLEEP)
    assert wait_until(lambda: any(name_of(task) == "sleep" for task in other.tasks()), 10)
    assert job not in [j.id for j in slurm.jobs() if j.live]
    slurm.crash(slurm.nodes[0], noticed=True)
    assert other.job(job).state == "RUNNING" and any(name_of(task) == "sleep" for task in other.tasks())
    other.down()
    assert other.processes() == [] and slurm.is_up
    other.up()
    other.wait(job, "CANCELLED")  # it is remembered, and does not rise again


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UserError, match="choose another with --dir"):
        layout.Layout(tmp_path / ("x" * 60)).make()


def test_root_does_not_go_without_munge(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(UserError, match="needs munge"):
        layout.Settings.choose(accounting=False, auth="none")


def test_without_slurm_tests_skip_and_ci_fails(monkeypatch):
    monkeypatch.setattr(layout, "find_program", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="sudo apt install slurmctld slurmd slurm-client munge"):
        fixtures.require_slurm(accounting=False)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="slurmdbd mariadb-server"):
        fixtures.require_slurm(accounting=True)


def test_node_lists_are_names():
    assert expand("127.0.0.[11-12,14]") == ("127.0.0.11", "127.0.0.12", "127.0.0.14")
    assert expand("n1,gpu[08-10]") == ("n1", "gpu08", "gpu09", "gpu10")
    assert expand("login") == ("login",)


def test_nothing_of_an_outer_slurm_reaches_ours(slurm, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")
    monkeypatch.setenv("SLURM_CONF", os.devnull)
    assert slurm.run("sbatch", "--test-only", "--wrap", "true").returncode == 0
