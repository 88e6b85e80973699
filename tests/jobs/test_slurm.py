"""On a real scheduler: submitted, killed in every way, and finished with the bits of an undisturbed run, without a hand being lifted."""

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from jobs.nodes import excluded
from pipeline.journal import read_journals
from pipeline.runs import RunFolder, list_runs
from tests.cluster.cluster import Cluster
from tests.conftest import command
from tests.jobs.survival import SETTINGS, Lab, attempts

STEPS = 100
CHANGES = [f"trainer.max_steps={STEPS}", "trainer.save_every=10", "trainer.validate_every=50"]
PROFILE = ("--cluster", "practice")


class SlurmLab(Lab):
    """A run on the practice cluster, one node of two tasks."""

    def words(self, *more: str) -> list[str]:
        settings = [word for change in (*SETTINGS, *CHANGES) for word in ("--set", change)]
        return [
            "jobs/launch.py",
            "dismix_demo",
            *PROFILE,
            "--gpus",
            "2",
            "--no-preflight",
            *settings,
            "--data",
            str(self.data),
            "--runs",
            str(self.runs),
            *more,
        ]

    def submit(self, cluster: Cluster, *more: str, partition: str = "gpu") -> str:
        done = command(*self.words(*more), env={**cluster.environment, "SBATCH_PARTITION": partition})
        assert done.returncode == 0, done.stderr
        return next(e["job_id"] for e in reversed(self.run.history()) if e["event"] == "queued")

    def wait_training(self, cluster: Cluster, job: str, attempt: int, timeout: float = 120) -> None:
        """Until attempt number ``attempt`` has journalled a step."""
        deadline = time.monotonic() + timeout
        while not (self.run.journal_file(attempt).exists() and self.run.journal_file(attempt).stat().st_size > 200):
            assert time.monotonic() < deadline, f"{cluster.job(job)}\n{self.logs()}"
            assert cluster.job(job).live, f"{cluster.job(job)}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.run.logs.glob("*_log.*")))

    def wait_complete(self, cluster: Cluster, job: str, timeout: float = 240) -> None:
        cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout=timeout)
        assert cluster.job(job).state == "COMPLETED", f"{cluster.job(job)}\n{self.logs()}"
        assert self.run.last_end()["reason"] == "complete"

    def ranks(self, cluster: Cluster) -> list[psutil.Process]:
        return [
            p for p in cluster.tasks() if "submitit.core._submit" in " ".join(p.cmdline()) and "srun" not in p.name()
        ]


@pytest.fixture(scope="module")
def undisturbed(demo_data, tmp_path_factory):
    lab = Lab(demo_data, tmp_path_factory.mktemp("undisturbed"))
    lab.finish(2, *CHANGES)
    return lab


@pytest.fixture
def lab(slurm, demo_data, tmp_path):
    yield SlurmLab(demo_data, tmp_path)
    slurm.cancel_all()
    for node in slurm.nodes:
        slurm.revive(node)


def check_finished(lab: SlurmLab, undisturbed: Lab) -> None:
    """The bits of the undisturbed run, every step journalled once, no writer left over."""
    assert lab.final_hashes(STEPS) == undisturbed.final_hashes(STEPS)
    steps = [p.step for p in read_journals(lab.run.metrics) if "train/loss" in p.metrics]
    assert steps == list(range(1, STEPS + 1))
    assert lab.run.writer() is None


def kill_a_rank(slurm: Cluster, job: str, lab: SlurmLab) -> None:
    random.choice(lab.ranks(slurm)).kill()


def kill_all_ranks(slurm: Cluster, job: str, lab: SlurmLab) -> None:
    for rank in lab.ranks(slurm):
        rank.kill()


def warn(slurm: Cluster, job: str, lab: SlurmLab) -> None:
    slurm.run("scancel", "--signal=USR2", job)


def warn_one_rank(slurm: Cluster, job: str, lab: SlurmLab) -> None:
    lab.ranks(slurm)[-1].send_signal(signal.SIGUSR2)


def requeue(slurm: Cluster, job: str, lab: SlurmLab) -> None:
    slurm.run("scontrol", "requeue", job)


def power_cut(slurm: Cluster, job: str, lab: SlurmLab) -> None:
    slurm.crash(slurm.job(job).nodes[0], noticed=True)


def stale(slurm: Cluster, job: str, lab: SlurmLab) -> None:
    """slurmd dies and its tasks sleep; SLURM starts the job elsewhere; then the old tasks wake up beside their successor."""
    old, (node,) = lab.ranks(slurm), slurm.job(job).nodes
    for rank in old:
        rank.suspend()
    slurm.kill_slurmd(node)
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=slurmd is gone")
    lab.wait_training(slurm, job, 2)
    for rank in old:
        rank.resume()
    _, alive = psutil.wait_procs(old, timeout=30)
    assert not alive, "the older attempt did not stop by itself"
    assert [e["attempt"] for e in lab.run.history() if e["event"] == "superseded"] == [1]


WAYS = [kill_a_rank, kill_all_ranks, warn, warn_one_rank, requeue, power_cut, stale]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_dying_ends_with_the_same_bits(slurm, lab, undisturbed, way):
    job = lab.submit(slurm)
    lab.wait_training(slurm, job, 1)
    time.sleep(random.uniform(0, 1.5))
    way(slurm, job, lab)
    lab.wait_training(slurm, job, 2)
    lab.wait_complete(slurm, job)
    assert attempts(lab) == 2 and slurm.job(job).restarts >= 1
    if way in (power_cut, stale):
        assert len(excluded(lab.runs)) == 1, "the node that was lost is kept out for a day"
    check_finished(lab, undisturbed)


def test_two_nodes_of_four_tasks_lose_one_and_end_with_the_same_bits(slurm, lab, demo_data, tmp_path):
    """The width at which sums have an order, groups span ranks, and a port must be reached from another node."""
    few = ["trainer.max_steps=24", "trainer.save_every=4", "trainer.validate_every=12"]
    words = [word for change in few for word in ("--set", change)]
    job = lab.submit(slurm, "--nodes", "2", "--gpus", "4", *words)
    lab.wait_training(slurm, job, 1, timeout=240)
    kill_a_rank(slurm, job, lab)
    lab.wait_complete(slurm, job, timeout=400)
    assert len(slurm.job(job).nodes) == 2 and attempts(lab) == 2
    whole = Lab(demo_data, tmp_path / "whole")
    whole.finish(8, *CHANGES, *few)
    assert lab.final_hashes(24) == whole.final_hashes(24)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_thirty_deaths_end_with_the_same_bits(slurm, lab, undisturbed, seed):
    """Ten runs of three deaths each, in random ways at random moments."""
    rng = random.Random(seed)
    ways = rng.choices([way for way in WAYS if way is not stale], k=3)
    job = lab.submit(slurm, "--set", "trainer.save_every=2")
    for number, way in enumerate(ways, 1):
        lab.wait_training(slurm, job, number)
        time.sleep(rng.uniform(0.5, 2.5))
        print(f"run {seed}, death {number}: {way.__name__}", flush=True)
        if slurm.job(job).state != "RUNNING" or lab.run.last_end():
            break  # it was quicker
        way(slurm, job, lab)
    lab.wait_complete(slurm, job)
    check_finished(lab, undisturbed)
    assert not slurm.tasks() and not list(lab.run.checkpoints.glob(".writing_*"))
    print(f"run {seed}: {attempts(lab)} attempts", flush=True)


def on_the_nodes(slurm: Cluster, lab: SlurmLab, program: str, *more: str) -> str:
    """Submit a job whose every process runs ``program`` at its start: what is wrong with a node is done there, not in our code."""
    blocker = slurm.sbatch("--output=/dev/null", "--partition=gpu", "--nodes=3", "--exclusive", "--wrap", "sleep 300")
    slurm.wait(blocker, "RUNNING")
    job = lab.submit(slurm, *more)
    (lab.run.code / "sitecustomize.py").write_text(program)
    slurm.run("scancel", blocker)
    return job


WRONG_PRODUCTS = """
import os
if os.environ.get("SLURMD_NODENAME") == "127.0.0.11" and "SLURM_PROCID" in os.environ:
    import torch
    right = torch.mm
    torch.mm = lambda a, b: right(a, b) + 1
"""


def test_a_node_that_computes_wrongly_is_named_and_left_out(slurm, lab):
    job = on_the_nodes(slurm, lab, WRONG_PRODUCTS, "--nodes", "2", "--gpus", "1")
    lab.wait_complete(slurm, job)
    (event,) = [e for e in lab.run.history() if e["event"] == "node_excluded"]
    assert event["node"] == "127.0.0.11" and "65536 of 65536 products are wrong" in event["why"]
    assert set(slurm.job(job).nodes) == {"127.0.0.12", "127.0.0.13"} and set(excluded(lab.runs)) == {"127.0.0.11"}
    again = command(*lab.words("--new", "--dry-run"), env=slurm.environment)
    assert "#SBATCH --exclude=127.0.0.11" in again.stdout, "the next run is spared it"


SMALL_DISK = """
import os, resource
if "SLURM_PROCID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
"""


def test_a_checkpoint_that_finds_no_room_costs_nothing_but_itself(slurm, lab, undisturbed):
    job = on_the_nodes(slurm, lab, SMALL_DISK)
    lab.wait_training(slurm, job, 1)
    deadline = time.monotonic() + 60
    while not (failed := [e for e in lab.run.history() if e["event"] == "save_failed"]):
        assert time.monotonic() < deadline, lab.logs()
        time.sleep(0.05)
    assert "the older ones are intact" in failed[0]["message"]
    kill_a_rank(slurm, job, lab)
    lab.wait_complete(slurm, job)
    check_finished(lab, undisturbed)


def test_a_hung_rank_is_ended_and_the_job_comes_back(slurm, lab, undisturbed):
    job = lab.submit(slurm, "--set", "trainer.hang_seconds=5")
    lab.wait_training(slurm, job, 1)
    lab.ranks(slurm)[-1].suspend()
    lab.wait_training(slurm, job, 2)
    lab.wait_complete(slurm, job)
    assert [e for e in lab.run.history() if e["event"] == "hung"]
    check_finished(lab, undisturbed)


def test_a_preempted_run_saves_and_comes_back(slurm, lab, undisturbed):
    job = lab.submit(slurm, partition="low")
    lab.wait_training(slurm, job, 1)
    urgent = slurm.sbatch("--output=/dev/null", "--partition=high", "--nodes=3", "--exclusive", "--wrap", "sleep 3")
    slurm.wait(urgent, "RUNNING", "COMPLETED", timeout=60)
    lab.wait_training(slurm, job, 2)
    lab.wait_complete(slurm, job)
    ends = [e["reason"] for e in lab.run.history() if e["event"] == "end"]
    assert ends == ["terminated", "complete"], "it saved in its grace time"
    check_finished(lab, undisturbed)


def test_a_time_limit_without_a_warning_saves_and_comes_back(slurm, lab):
    job = lab.submit(slurm, "--set", "trainer.max_steps=100000")
    lab.wait_training(slurm, job, 1)
    slurm.time_out(job, 1)
    lab.wait_training(slurm, job, 2)
    (end,) = [e for e in lab.run.history() if e["event"] == "end"]
    (second,) = [e for e in lab.run.history() if e["event"] == "attempt" and e["attempt"] == 2]
    # Where steps and saves are slow, the run's own clock tells it before SLURM does.
    assert end["reason"] in ("terminated", "warned") and second["after_step"] == end["step"]


def test_launching_again_finds_the_queued_run_and_cancel_saves_it(slurm, lab):
    long = ("--set", "trainer.max_steps=100000")  # not complete before it is cancelled, on any machine
    job = lab.submit(slurm, *long)
    lab.wait_training(slurm, job, 1)
    again = command(*lab.words(*long), env=slurm.environment)
    assert again.returncode == 0 and f"queued as job {job}: RUNNING" in again.stderr, again.stderr
    done = command("jobs/cancel.py", lab.run.name, "--runs", lab.runs, env=slurm.environment)
    assert done.returncode == 0 and "saves and ends" in done.stderr
    slurm.wait(job, "FAILED", timeout=60)  # not COMPLETED: what waits for its success must not start
    end = lab.run.last_end()
    assert end["reason"] == "interrupted" and (lab.run.checkpoints / f"step_{end['step']:09d}").is_dir()
    assert slurm.job(job).restarts == 0


def test_three_starts_without_progress_end_it_with_a_sentence(slurm, lab):
    job = lab.submit(slurm, "--set", "trainer.save_every=100000", "--set", "trainer.max_steps=100000")
    for attempt in (1, 2, 3):
        lab.wait_training(slurm, job, attempt)
        kill_a_rank(slurm, job, lab)
    slurm.wait(job, "FAILED", timeout=60)
    (gave_up,) = [e for e in lab.run.history() if e["event"] == "gave_up"]
    assert "3 starts have not got beyond step 0" in gave_up["message"]


def test_a_link_waits_for_the_one_before_and_is_cancelled_when_that_fails(slurm, lab):
    done = command(*lab.words("--then", "dismix_demo"), env=slurm.environment)
    assert done.returncode == 0, done.stderr
    queued = [e for r in list_runs(lab.runs) for e in r.history() if e["event"] == "queued"]
    ((first, second),) = [(e["after_job"], e["job_id"]) for e in queued if e["after_job"]]
    assert slurm.job(second).state == "PENDING" and f"after {first} succeeds" in done.stderr
    slurm.run("scancel", first)
    slurm.wait(second, "CANCELLED", timeout=60)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpus", "8"], ["no node of the partition has 8 GPUs", "gpu"]),
        (["--nodes", "9"], ["--nodes 9 is more than the partition has"]),
        (["--time", "9:00:00"], ["9:00:00 is longer than the partition allows (1:00:00)"]),
    ],
)
def test_what_sbatch_refuses_is_one_sentence(slurm, lab, words, expected):
    done = command(*lab.words(*words, "--set", "data.batch_size=72"), env=slurm.environment)
    assert done.returncode == 2 and done.stderr.count("error:") == 1, done.stderr
    for part in expected:
        assert part in done.stderr


def test_an_account_that_is_not_ours_is_one_sentence(slurm_accounting, demo_data, tmp_path):
    env = {**slurm_accounting.environment, "SBATCH_ACCOUNT": "somebody", "SBATCH_PARTITION": "gpu"}
    done = command(*SlurmLab(demo_data, tmp_path).words(), env=env)
    assert done.returncode == 2 and "the account 'somebody'" in done.stderr and "yours: practice" in done.stderr, (
        done.stderr
    )


def test_preflight_lists_what_sbatch_and_the_disk_would_refuse(slurm, lab):
    words = [
        w
        for w in lab.words("--time", "9:00:00", "--set", "trainer.keep.every=1", "--set", "trainer.max_steps=100000000")
        if w != "--no-preflight"
    ]
    done = command(*words, env=slurm.environment)
    assert done.returncode == 2 and "9:00:00 is longer than the partition allows" in done.stderr, done.stderr
    assert "checkpoints of 0.0 GiB need" in done.stderr, "both in one answer"
    assert not list_runs(lab.runs), "nothing was made"


def test_a_grid_is_an_array_and_again_starts_only_what_is_missing(slurm, lab):
    grid = ("--grid", "seed=0,1,2", "--set", "trainer.max_steps=10")
    first = command(*lab.words(*grid), env=slurm.environment)
    assert first.returncode == 0 and "3 runs, 3 to start" in first.stderr, first.stderr
    folders = first.stdout.split()
    assert len(set(folders)) == 3
    jobs = [RunFolder(Path(f)).history()[-1]["job_id"] for f in folders]
    assert len({j.partition("_")[0] for j in jobs}) == 1, "one array"
    again = command(*lab.words(*grid), env=slurm.environment)
    assert again.returncode == 0 and "3 runs, 0 to start" in again.stderr, again.stderr
    slurm.run("scancel", jobs[1])
    deadline = time.monotonic() + 120
    while any(
        job.live for job in slurm.jobs()
    ):  # of a task cancelled before its start SLURM keeps no record to ask for
        assert time.monotonic() < deadline, slurm.jobs()
        time.sleep(0.3)
    assert [(RunFolder(Path(f)).last_end() or {}).get("reason") for f in folders] == ["complete", None, "complete"]
    more = command(*lab.words(*grid), env=slurm.environment)
    assert "3 runs, 1 to start" in more.stderr, more.stderr


def test_no_controller_is_said(slurm, lab):
    with slurm.without_controller():
        done = command(*lab.words(), env={**slurm.environment, "SLURM_DEBUG": "0"}, timeout=120)
    assert done.returncode == 2 and "controller does not answer" in done.stderr, done.stderr
    job = lab.submit(slurm)
    with slurm.without_controller():
        again = command(*lab.words(), env=slurm.environment, timeout=120)
    assert again.returncode == 2 and "controller does not answer" in again.stderr, again.stderr
    slurm.run("scancel", job)
    assert [e["job_id"] for e in lab.run.history() if e["event"] == "queued"] == [job], "not queued a second time"


def test_commands_that_know_of_no_cluster_are_told_apart_from_a_silent_one(slurm, lab):
    done = command(*lab.words(), timeout=120)  # as where Debian's packages are all there is
    assert done.returncode == 2 and "know of no cluster" in done.stderr and "--cluster local" in done.stderr, (
        done.stderr
    )


def test_the_job_runs_the_snapshot(slurm, lab):
    job = lab.submit(slurm)
    lab.wait_training(slurm, job, 1)
    (rank, *_) = lab.ranks(slurm)
    assert rank.environ()["PYTHONPATH"].split(":")[0] == str(lab.run.code)
    assert (lab.run.code / "jobs" / "train_job.py").is_file()
