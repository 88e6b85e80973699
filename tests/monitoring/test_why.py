"""What runs die of: real deaths of real trainings, real ends of SLURM jobs, and the recorded words of hardware that is not here."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from monitoring import why
from monitoring.causes import ALONE, CATALOGUE, cause_of
from monitoring.overview import Reading
from monitoring.page import render
from monitoring.why import judge
from pipeline.config import Rollback
from pipeline.health import trouble
from pipeline.runs import RunFolder
from tests.conftest import command
from tests.monitoring.dying import HANG, NODE, die
from tests.monitoring.run_factory import attempt, end, finished_run, kill_writer, make_run
from tests.pipeline.shard_factory import write_dataset
from tests.pipeline.stack import config_of


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "stack" / "0123abcd")
    run.create()
    run.config_file.write_text(config_of().to_yaml())
    run.record("created", config={})
    return run


@pytest.fixture
def data(tmp_path) -> Path:
    write_dataset(tmp_path / "data", [64])
    return write_dataset(tmp_path / "data", [16], "valid").folder


WITHOUT_NODE = {
    "interrupted", "time_limit", "terminated", "disk_full", "not_finite", "spike", "killed", "segfault", "superseded",
}  # fmt: skip

# -- real deaths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "cause", "said"),
    [
        ("no_memory", "host_memory", "can't allocate memory"),
        ("no_room", "disk_full", "could not be written"),
        ("not_a_number", "not_finite", "the loss is nan at step 3"),
        ("no_data", "data_missing", "holds no prepared dataset"),
        ("damaged_data", "data_damaged", "no intact train sample left"),
        ("no_weights", "weights_missing", "fetch_weights.py encodec"),
        ("wrong_products", "bad_node", "65536 of 65536 products are wrong"),
        ("no_port", "no_port", "no free port from"),
        ("no_rank_0", "no_rendezvous", "did not publish its address"),
        ("no_module", "missing_module", "slurmphony_is_not_a_module"),
        ("programmers_mistake", "exception", "mat1 and mat2 shapes cannot be multiplied"),
        ("SIGKILL", "killed", "SIGKILL"),
        ("SIGSEGV", "segfault", "SIGSEGV"),
        ("SIGINT", "interrupted", "end interrupted"),
        ("SIGUSR2", "time_limit", "end warned"),
        ("SIGTERM", "terminated", "end terminated"),
        ("leap", "spike", "the loss leapt to"),
        ("superseded", "superseded", "superseded"),
        ("with_workers", "loader_worker", "Loader worker"),
        ("other_shape", "other_architecture", "do not fit this config"),
        ("unequal_shares", "user_error", "cannot be shared equally by 3 processes"),
    ],
)
def test_a_training_that_died_is_made_out(run, data, way, cause, said):
    die(way, run, data)
    verdict = judge(run)
    assert (verdict.cause, said in verdict.said) == (cause, True), verdict
    assert run.path.parent.name in verdict.do or "python" not in verdict.do
    if cause not in WITHOUT_NODE:
        assert (verdict.rank, verdict.node) == (0, NODE)


def test_a_log_whose_clock_is_behind_the_historys_says_the_same(run, data):
    """A file's time follows a coarser clock than the history's, and on a shared file system the server's."""
    die("no_weights", run, data)
    (log,) = run.logs.glob("*_rank0.log")
    for behind in (0.004, 3.0):
        os.utime(log, (log.stat().st_atime, log.stat().st_mtime - behind))
        verdict = judge(run)
        assert (verdict.cause, verdict.rank, verdict.node) == ("weights_missing", 0, NODE), verdict


def test_of_two_ranks_the_one_that_was_killed_is_named_and_not_the_one_that_complains(run, data):
    assert die("rank 1 is killed", run, data, 2)[1] == -9
    verdict = judge(run)
    assert (verdict.cause, verdict.rank) == ("killed", 1), verdict
    assert [e["rank"] for e in run.history() if e["event"] == "rank_failed"] == [0], "the other complained, too"


def test_where_a_rank_left_without_a_word_the_other_ones_complaint_is_all_there_is(run, data):
    die("rank 1 leaves", run, data, 2)
    verdict = judge(run)
    assert (verdict.cause, verdict.rank) == ("lost_peer", 0), verdict


@pytest.mark.parametrize(
    ("way", "why_it"), [("rank 1 sleeps", "it stands in sleep"), ("rank 1 is stopped", "it wrote down no stacks")]
)
def test_of_a_hang_the_rank_that_waits_for_nobody_is_named_within_twice_the_threshold(run, data, way, why_it):
    die(way, run, data, 2)
    verdict = judge(run)
    assert (verdict.cause, verdict.rank) == ("hang", 1), verdict
    assert f"rank 1: {why_it}" in verdict.also[0]
    hung = next(e for e in run.history() if e["event"] == "hung")
    last = run.heartbeat()["time"]  # the heart beats on while a step hangs
    assert HANG <= hung["limit_s"] <= hung["silent_s"] < 2 * hung["limit_s"] and abs(last - hung["time"]) < 10
    if way == "rank 1 sleeps":  # it could still tell; both did
        assert re.match(r"rank 1 never entered collective \d+ of group .*; rank 0 waits in it$", verdict.also[1])


def test_where_the_stacks_tell_no_ranks_apart_the_flight_recorders_do(run, data):
    die("rank 1 sleeps", run, data, 2)
    for path in run.logs.glob("hung_rank*.txt"):
        path.write_text("Thread 0x1:\n  nothing that is known\n")
    verdict = judge(run)
    assert verdict.rank == 1 and "never entered collective" in verdict.also[0], verdict
    step = next(e for e in run.history() if e["event"] == "hung")["after_step"]
    (run.logs / f"hung_rank1_step{step}_collectives.json").write_text(
        '{"gloo": {"entries": [7, {"process_group": 1}]}}'
    )
    assert judge(run).cause == "hang", "what a stranger wrote there is no reason to stumble"


def test_what_nccl_left_is_named_and_never_opened(run):
    attempt(run, 0, 20)
    kill_writer(run)
    run.record("rank_failed", rank=0, node="n1", error="DistBackendError", message="NCCL error: ncclSystemError: x")
    (run.logs / "nccl_trace_rank_0").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    verdict = judge(run)
    assert verdict.cause == "nccl" and verdict.also[-1].endswith(f"torchfrtrace --prefix nccl_trace_rank_ {run.logs}")
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("rank 1 is nan", "the loss is nan on rank 1 at step 3;"),
        ("rank 1 is nan, logged later", "the loss is nan on rank 1 (first at step 3) at step 4;"),  # of both, by then
    ],
)
def test_of_a_loss_that_is_not_finite_the_rank_is_named_on_which_it_began(run, data, way, said):
    die(way, run, data, 2)
    verdict = judge(run)
    assert (verdict.cause, verdict.rank) == ("not_finite", 1), verdict
    assert said in verdict.said
    ended = next(e for e in run.history() if e["event"] == "end")
    began = next(e for e in run.history() if e["event"] == "attempt")
    assert (ended["rank"], ended["time"] - began["time"] < 60) == (1, True)


def test_a_slow_rank_is_told_by_every_command_while_it_trains_and_afterwards(run, data, tmp_path):
    """Whoever is slow waits for nobody: by its own time of a step it is known, for all ranks step alike."""
    assert die("rank 1 is slow", run, data, 2) == [0, 0]
    warned = [e for e in run.history() if e["event"] == "warning" and e["what"] == "slow_rank"]
    assert [e["rank"] for e in warned] == [1], run.history()
    words = f"rank 1 on node {warned[0]['node']} holds the others up"
    assert words in judge(run).also[0]
    assert words in render(run, None)
    row = Reading.of(run, time.time(), mirrored=False, kept={})
    assert words in run.heartbeat()["warnings"][0] and row.heartbeat["warnings"]


# -- real ends of SLURM jobs --------------------------------------------------------------------------------------


def queued(slurm, run: RunFolder, *words: str) -> str:
    """A job whose steps write where submitit's do, and an attempt in it that says nothing any more."""
    logs = [f"--output={run.logs}/%j_0_log.out", f"--error={run.logs}/%j_0_log.err"]
    job = slurm.sbatch(*logs, *words, "--wrap", "srun sleep 300")
    run.record("queued", job_id=job, logs=str(run.logs))
    slurm.wait(job, "RUNNING")
    time.sleep(0.5)  # its step has begun
    attempt(run, 0, 20, job=job)
    kill_writer(run)
    return job


def test_how_slurm_ended_a_job_is_made_out_without_accounting(slurm, run, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    job = queued(slurm, run, "--no-requeue")
    slurm.time_out(job, 1)
    slurm.wait(job, "TIMEOUT", timeout=60)
    assert (judge(run).cause, "DUE TO TIME LIMIT" in judge(run).said) == ("time_limit", True)
    job = queued(slurm, run)
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED")
    assert judge(run).cause == "terminated" and "CANCELLED AT" in judge(run).said


# -- recorded words -----------------------------------------------------------------------------------------------

RECORDED = {
    "preempted": "slurmstepd: error: *** JOB 5 ON n7 CANCELLED AT 2026-11-20T19:19:23 DUE TO PREEMPTION ***",
    "gpu_memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.14 GiB",
    "shared_memory": "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that /dev/shm is full",
    "gpu_fault": "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    "nccl": "torch.distributed.DistBackendError: NCCL error: ncclSystemError: System call (e.g. socket, malloc) failed",
    "node_failed": "slurmstepd: error: *** JOB 5 ON n7 CANCELLED AT 2026-11-20T19:19:23 DUE TO NODE FAILURE ***",
    "host_memory": "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have been OOM Killed.",
    "read_only": "OSError: [Errno 30] Read-only file system: 'x'",
    "disk_full": "OSError: [Errno 122] Disk quota exceeded",
    "lost_peer": "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=8, OpType=ALLREDUCE)",
    "loader_worker": "RunFailed: Loader worker 77 left with code 3; the same command goes on from the last checkpoint.",
    "other_architecture": "UserError: the weights of stack/0123abcd do not fit this config: size mismatch",
    "user_error": "UserError: A global batch of 7 samples cannot be shared equally by 2 processes.",
}


@pytest.mark.parametrize("cause", RECORDED)
def test_recorded_words_are_made_out_in_a_log(run, cause):
    run.record("queued", job_id="5", logs=str(run.logs))
    attempt(run, 0, 20, job="5")
    kill_writer(run)
    log = run.logs / "5_1_log.err"
    log.write_text(f"stack: step 10/20  loss 1\nTraceback (most recent call last):\n{RECORDED[cause]}\n")
    verdict = judge(run)
    assert verdict.cause == cause and verdict.source == log.name, verdict


def test_the_micro_batch_to_try_is_half_of_what_was_too_much(run):
    attempt(run, 0, 20)
    kill_writer(run)
    run.record("rank_failed", rank=1, node="n2", error="OutOfMemoryError", message="CUDA out of memory.")
    verdict = judge(run)
    assert (verdict.rank, verdict.node) == (1, "n2") and verdict.do.endswith(
        "--set trainer.micro_batch=2, or --set trainer.activation_checkpointing=true (slower)"
    )


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        ([("gave_up", {"message": "3 starts have not got beyond step 0"})], "no_progress"),
        ([("superseded", {"attempt": 1, "step": 3})], "superseded"),
        ([("cancelled", {"job_id": "7"})], "cancelled"),
        (
            [("requeued", {"job_id": "7", "why": "x"}), ("requeue_failed", {"message": "scontrol failed"})],
            "requeue_failed",
        ),
        ([("requeued", {"job_id": "7", "why": "out of time"}), ("cancelled", {"job_id": "7"})], "cancelled"),
        ([], "silent"),
    ],
)
def test_the_history_alone_is_enough(run, events, cause):
    attempt(run, 0, 20)
    kill_writer(run)
    for event, facts in events:
        run.record(event, **facts)
    assert judge(run).cause == cause


def test_a_spike_is_made_out_in_healths_own_words():
    said = trouble({"train/loss": 99.0}, [1.0, 1.1] * 20, Rollback(spike=5.0))
    assert cause_of(said).name == "spike"


def test_what_went_before_the_newest_attempt_does_not_count(run):
    attempt(run, 0, 20)
    run.record("rank_failed", rank=0, node="n1", error="OutOfMemoryError", message="CUDA out of memory.")
    attempt(run, 20, 30)
    kill_writer(run)
    assert judge(run).cause == "silent"


def test_a_run_that_lacks_nothing_is_said_to(tmp_path):
    assert judge(finished_run(tmp_path)).state == "complete at step 20"
    running = make_run(tmp_path, identity="00000001")
    assert judge(running).state == "it has not begun yet"
    attempt(running, 0, 20)
    assert judge(running).state == "it is being trained now"


def test_every_sentence_of_the_catalogue_can_be_said():
    names = [cause.name for cause in (*CATALOGUE, ALONE)]
    assert len(set(names)) == len(names) >= 15
    facts = dict.fromkeys(("run", "config", "step", "rank", "node", "micro_batch", "said"), "x")
    for cause in (*CATALOGUE, ALONE):
        assert cause.what.format(**facts) and cause.do.format(**facts)
    tested = set(RECORDED) | {
        c for name in names for c in [name] if re.search(rf'"{name}"', Path(__file__).read_text())
    }
    assert tested == set(names), set(names) - tested


def test_the_command(run):
    attempt(run, 0, 20)
    end(run, "failed", 20, message="the loss is nan at step 20")
    done = command("monitoring/why.py", run.name, "--runs", run.path.parent.parent)
    assert done.returncode == 0 and "what  the loss is nan at step 20" in done.stdout, done
    done = command("monitoring/why.py", run.path, "--json")
    assert json.loads(done.stdout)["cause"] == "not_finite"
    done = command("monitoring/why.py", "nothing", "--runs", run.path.parent.parent)
    assert done.returncode == 2 and "no run 'nothing'" in done.stderr


def test_no_output_is_a_command_that_was_not_meant(run, capsys):
    """A message that a run wrote is shown, never formatted or run."""
    attempt(run, 0, 20)
    end(run, "failed", 20, message="{run.__class__} the loss is nan $(id)")
    assert why.main([str(run.path)]) == 0
    assert "{run.__class__} the loss is nan $(id)" in capsys.readouterr().out
