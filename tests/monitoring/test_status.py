"""The screen of all runs: what each folder says, what SLURM adds, and how seldom SLURM is asked."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from monitoring import status
from monitoring.overview import CACHE, Standing, look
from monitoring.recent import BestValidation, read_recent
from monitoring.screen import screen
from monitoring.slurm_jobs import ANSWER, accounted, ask
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.journal import Journal
from pipeline.runs import RunFolder
from tests.conftest import ROOT, command
from tests.monitoring.run_factory import attempt, end, finished_run, kill_writer, make_run


def standing(root: Path, name: str = "dismix_demo/1f3a9c2e") -> Standing:
    overview = look(root)
    assert not overview.unreadable
    return next(run for run in overview.runs if run.name == name)


def beat(run: RunFolder, step: int, **facts: object) -> None:
    run.beat(**{"attempt": 1, "state": "training", "step": step, "total": 1000, "loss": 0.5, "rate": 2.0, **facts})


def write_journal(run: RunFolder, rows: list[tuple[int, float, dict[str, float]]], number: int = 1) -> None:
    """A journal whose lines have the times that are given."""
    lines = [json.dumps({"attempt": number, "after_step": 0, "time": rows[0][1]})]
    lines += [json.dumps({"step": step, "time": at, "metrics": values}) for step, at, values in rows]
    run.journal_file(number).write_text("\n".join(lines) + "\n")


def backdate(run: RunFolder, seconds: float) -> None:
    """Let all that the history holds so far have happened earlier."""
    events = [{**event, "time": event["time"] - seconds} for event in run.history()]
    run.history_file.write_text("".join(json.dumps(event) + "\n" for event in events))


# -- what the folders say -----------------------------------------------------------------------------------------


def test_a_run_that_trains_shows_where_it_is_and_how_it_does(tmp_path):
    run = make_run(tmp_path)
    attempt(run, 0, 1)
    now = time.time()
    rows = [
        (10 * i, now - 3600 + 30 * i, {"train/loss": 2.0 - i / 120, "time/steps_per_s": 2.0}) for i in range(1, 121)
    ]
    rows += [(600, now - 1800, {"valid/loss": 1.2}), (1200, now, {"valid/loss": 1.4})]
    write_journal(run, rows)
    beat(run, 1200, total=3000)
    (run.checkpoints / "step_000001000").mkdir()
    row = standing(tmp_path)
    assert (row.state, row.step, row.total, row.attempts, row.processes) == ("running", 1200, 3000, 1, 2)
    assert row.left == pytest.approx(900) and row.rate == 2.0 and row.rate_change == pytest.approx(0)
    assert row.loss == pytest.approx(1.0) and row.loss_change == pytest.approx(-0.486, abs=0.01)
    assert (row.best_validation, row.best_validation_step) == (1.2, 600)
    assert row.checkpoint_age == pytest.approx(0, abs=30) and row.health == []


def shown(root: Path) -> str:
    console = Console(width=220, file=io.StringIO())
    console.print(screen(look(root), everything=True))
    return console.file.getvalue()


def test_gpus_arithmetic_and_warnings_are_shown_where_there_are_any(tmp_path):
    run = make_run(tmp_path)
    attempt(
        run, 0, 20, lambda step: {"train/loss": 1.0, "time/mfu": 0.37, "time/data_wait": 0.01, "memory/peak_gib": 31.25}
    )
    beat(run, 20, warnings=[], gpu=None)
    assert "GPU " not in shown(tmp_path).replace("GPU-hours", "") and "37%" in shown(tmp_path)
    gpu = {"count": 2, "use": 0.94, "memory": 60 << 30, "memory_total": 80 << 30, "power_w": 612.5, "energy_kwh": 1.5}
    slow = "rank 3 on node n2 holds the others up: 0.5 s of its own a step, theirs take 0.2 s"
    beat(run, 20, warnings=[slow], gpu=gpu)
    row = standing(tmp_path)
    assert row.peak_memory == 31.25
    assert (row.data_wait, row.mfu, row.gpu_use, row.gpu_memory, row.gpu_power) == (0.01, 0.37, 0.94, 0.75, 612.5)
    assert row.health == [slow]
    for words in ("MFU", "PEAK GiB", "31.2", "GPU MEM", "94%", "75%", slow):
        assert words in shown(tmp_path)
    end(run, "complete", 20)
    assert "94%" not in shown(tmp_path) and "PEAK" not in shown(tmp_path), "what was is not what is"


@pytest.mark.parametrize(
    ("events", "state", "why"),
    [
        ([("end", {"reason": "complete", "step": 20})], "complete", ""),
        ([("end", {"reason": "failed", "step": 20, "message": "the loss is nan at step 20"})], "failed", "the loss is nan"),
        ([("end", {"reason": "interrupted", "step": 20})], "stopped", "stopped by hand"),
        ([("end", {"reason": "warned", "step": 20})], "stopped", "out of time"),
        ([("end", {"reason": "warned", "step": 20}), ("requeued", {"job_id": "7"})], "queued", ""),
        ([("gave_up", {"message": "3 starts have not got beyond step 0"})], "failed", "3 starts"),
        ([("end", {"reason": "interrupted", "step": 20}), ("gave_up", {"message": "by hand"})], "stopped", "by hand"),
        ([("cancelled", {})], "stopped", "cancelled by hand"),
        ([("rank_ended", {"rank": 1, "exit_code": -9, "signal": "SIGKILL"})], "killed", "rank 1 ended with SIGKILL"),
        ([("rolled_back", {"step": 9, "message": "the loss is nan", "skip": [0, 1]})], "killed", "without a word; the loss"),
    ],
)  # fmt: skip
def test_how_a_run_ended_is_said_in_words(tmp_path, events, state, why):
    run = make_run(tmp_path)
    attempt(run, 0, 20)
    kill_writer(run)
    for event, facts in events:
        run.record(event, attempt=1, **facts)
    row = standing(tmp_path)
    assert row.state == state and why in "; ".join(row.health), row.health


def test_what_is_wrong_with_a_run_that_trains_is_said_worst_first(tmp_path):
    run = make_run(tmp_path)
    attempt(run, 0, 1)
    now = time.time()
    usual = [(i, now - 4000 + 10 * i, {"train/loss": 1.0, "time/steps_per_s": 4.0}) for i in range(1, 41)]
    slow = [
        (i, now - 3000 + 10 * (i - 40), {"train/loss": math.nan, "time/steps_per_s": 1.0, "time/data_wait": 0.7})
        for i in range(41, 46)
    ]
    write_journal(run, usual + slow)
    backdate(run, 5000)
    run.record("save_failed", attempt=1, step=44, message="no room")
    run.record("data_fault", step=3, rank=0, message="train-000000.tar")
    beat(run, 45, loss="nan")
    row = standing(tmp_path)
    told = "; ".join(row.health)
    assert row.loss == "nan" and row.rate_change == pytest.approx(-0.75)
    wanted = (
        "loss is nan",
        "nothing new for",
        "25%",
        "waits 70%",
        "damaged samples replaced: 1",
        "not be written at step 44",
    )
    assert all(words in told for words in wanted) and told.startswith("the loss is nan"), told


def test_a_hang_names_step_and_rank_once(tmp_path):
    run = make_run(tmp_path)
    attempt(run, 0, 20)
    for rank in (3, 0, 1):
        run.record("hung", rank=rank, after_step=20, silent_s=310.0, stacks=f"hung_rank{rank}_step20.txt")
    kill_writer(run)
    assert [h for h in standing(tmp_path).health if "hung" in h] == [
        "hung for 5 min after step 20 (rank 3); stacks saved"
    ]


def test_a_mirror_is_judged_as_of_when_it_saw_the_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = make_run(tmp_path)
    attempt(run, 0, 20)
    kill_writer(run)
    beat(run, 20)
    (tmp_path / ".sync").mkdir()
    write_json(tmp_path / ".sync" / "seen.json", {"host": "c", "time": time.time() + 30})
    assert standing(tmp_path).state == "running"
    write_json(tmp_path / ".sync" / "seen.json", {"host": "c", "time": time.time() + 120})
    assert standing(tmp_path).state == "killed"


def test_damage_in_one_run_hides_no_other(tmp_path):
    finished_run(tmp_path)
    broken = finished_run(tmp_path, "0badc0de")
    broken.history_file.write_text('[1]\n{"event": "attempt"}\n\xff\n')
    beaten = finished_run(tmp_path, "0badbea7")
    beaten.heartbeat_file.write_text("[]")
    for cache in (CACHE, ANSWER):
        (tmp_path / cache).write_text('{"best": 3')
    overview = look(tmp_path)
    assert [s.name[-8:] for s in overview.runs] == ["0badbea7", "1f3a9c2e"]
    assert "no event" in overview.unreadable["dismix_demo/0badc0de"]


# -- journals -----------------------------------------------------------------------------------------------------


def test_the_best_validation_is_kept_and_only_new_lines_are_read(tmp_path):
    run = make_run(tmp_path)
    journal = Journal(run.journal_file(1), 1, 0)
    journal.log(10, {"valid/loss": 3.0})
    best = BestValidation()
    best.update(run.metrics)
    read = dict(best.read)
    journal.log(20, {"valid/loss": 2.0})
    journal.log(30, {"valid/loss": math.nan})
    with run.journal_file(1).open("a") as file:
        file.write('{"step": 40, "time": 1, "metrics": {"valid/l')  # being written
    best.update(run.metrics)
    assert (best.loss, best.step) == (2.0, 20) and best.read["attempt_001.jsonl"] > read["attempt_001.jsonl"]
    with run.journal_file(1).open("a") as file:
        file.write('oss": 1.5}}\n')
    best.update(run.metrics)
    assert (best.loss, best.step) == (1.5, 40)


def test_of_a_long_journal_only_the_end_is_read(tmp_path):
    run = make_run(tmp_path)
    attempt(run, 0, 5000)
    recent = read_recent(run.metrics)
    assert recent.last[0] == 5000 and 100 < len(recent.points) < 1000


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_a_screen_and_for_programs_json(tmp_path):
    finished_run(tmp_path)
    done = command("monitoring/status.py", "--runs", tmp_path)
    assert done.returncode == 0 and "dismix_demo/1f3a9c2e" in done.stdout and "1 complete" in done.stdout, done.stderr
    tree = json.loads(command("monitoring/status.py", "--runs", tmp_path, "--json").stdout)
    assert tree["runs"][0]["state"] == "complete" and tree["slurm"] is None


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*--runs"):
        status.main(["--runs", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="at least 1 second"):
        status.main(["--runs", str(tmp_path), "--every", "0"])


def test_watching_looks_again_and_ctrl_c_is_no_error(tmp_path):
    run = make_run(tmp_path)
    attempt(run, 0, 20)
    words = [sys.executable, "monitoring/status.py", "--runs", str(tmp_path), "--watch", "--json", "--every", "1"]
    watcher = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert json.loads(watcher.stdout.readline())["runs"][0]["state"] == "running"
    end(run, "complete", 20)
    states = [json.loads(watcher.stdout.readline())["runs"][0]["state"] for _ in range(2)]
    assert "complete" in states
    watcher.send_signal(2)
    assert watcher.wait(20) == 0 and watcher.stderr.read() == ""


# -- SLURM --------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(slurm, tmp_path, monkeypatch) -> Path:
    """The practice cluster's squeue, behind one that writes down each call."""
    calls = tmp_path / "calls"
    calls.touch()
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f'#!/bin/sh\necho asked >> "{calls}"\nexec {shutil.which("squeue")} "$@"\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    return calls


def test_slurm_is_asked_once_a_minute_however_many_look(slurm, counted, tmp_path):
    root = tmp_path / "runs"
    held = slurm.sbatch("--hold", "--output=/dev/null", "--wrap", "true")
    make_run(root).record("queued", job_id=held)
    words = [sys.executable, "monitoring/status.py", "--runs", str(root), "--json"]
    lookers = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [json.loads(looker.communicate(timeout=60)[0])["runs"][0] for looker in lookers]
    assert {(t["state"], t["waits_for"]) for t in told} == {("queued", "JobHeldUser")}
    assert counted.read_text().splitlines() == ["asked"]
    later = time.time() + 61
    assert ask(root, {os.getuid()}, set(), now=later).jobs[held].state == "PENDING"
    with slurm.without_controller():
        answer = ask(root, {os.getuid()}, set(), now=later + 61)
    assert answer.problem and answer.jobs[held].state == "PENDING" and answer.age > 60, "the last word stays"
    assert len(counted.read_text().splitlines()) == 3


def test_a_job_that_ended_without_a_word_is_told_by_accounting(slurm_accounting, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm_accounting.environment["SLURM_CONF"])
    job = slurm_accounting.sbatch("--output=/dev/null", "--wrap", "exit 3")
    slurm_accounting.wait(job, "FAILED")
    deadline = time.monotonic() + 30
    while (ended := accounted({job}).get(job)) is None or ended.state != "FAILED":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    run = make_run(tmp_path)
    run.record("queued", job_id=job)
    attempt(run, 0, 20, job=job)
    kill_writer(run)
    row = standing(tmp_path)
    assert row.state == "killed" and row.health[0].startswith("SLURM: FAILED, exit code 3:0 on 127.0.0.1")
