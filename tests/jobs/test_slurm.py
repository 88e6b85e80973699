"""On a real scheduler: submitted, killed in every way, and finished with the bits of an undisturbed run, without a hand being lifted."""

import random
import signal
import time

import psutil
import pytest

from pipeline.journal import read_journals
from pipeline.runs import list_runs
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


WAYS = [kill_a_rank, kill_all_ranks, warn, warn_one_rank, requeue, power_cut]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_dying_ends_with_the_same_bits(slurm, lab, undisturbed, way):
    job = lab.submit(slurm)
    lab.wait_training(slurm, job, 1)
    time.sleep(random.uniform(0, 1.5))
    way(slurm, job, lab)
    lab.wait_training(slurm, job, 2)
    lab.wait_complete(slurm, job)
    assert attempts(lab) == 2 and slurm.job(job).restarts >= 1
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
    urgent = slurm.sbatch("--partition=high", "--nodes=3", "--exclusive", "--wrap", "sleep 3")
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
    assert end["reason"] == "terminated" and second["after_step"] == end["step"]


def test_launching_again_finds_the_queued_run_and_cancel_saves_it(slurm, lab):
    job = lab.submit(slurm)
    lab.wait_training(slurm, job, 1)
    again = command(*lab.words(), env=slurm.environment)
    assert again.returncode == 0 and f"queued as job {job}: RUNNING" in again.stderr, again.stderr
    done = command("jobs/cancel.py", lab.run.name, "--runs", lab.runs, env=slurm.environment)
    assert done.returncode == 0 and "saves and ends" in done.stderr
    slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", timeout=60)
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


def test_no_controller_is_said(slurm, lab):
    with slurm.without_controller():
        done = command(*lab.words(), env={**slurm.environment, "SLURM_DEBUG": "0"}, timeout=120)
    assert done.returncode == 2 and "controller does not answer" in done.stderr, done.stderr


def test_the_job_runs_the_snapshot(slurm, lab):
    job = lab.submit(slurm)
    lab.wait_training(slurm, job, 1)
    (rank, *_) = lab.ranks(slurm)
    assert rank.environ()["PYTHONPATH"] == str(lab.run.code)
    assert (lab.run.code / "jobs" / "train_job.py").is_file()
