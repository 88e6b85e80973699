"""The run folder: history, lease, journals over several attempts."""

import json
import math
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import runs
from pipeline.errors import RunFailed, UserError
from pipeline.files import append_line, read_lines, write_json
from pipeline.journal import Journal, read_journals
from pipeline.runs import RunFolder, find_run, list_runs


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "toy" / "0123abcd")
    folder.create()
    folder.config_file.write_text("model: {}\n")
    folder.record("created")
    return folder


def test_a_torn_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "history.jsonl"
    append_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"b": 2, "tor')
    append_line(path, {"c": 3})
    assert read_lines(path) == ([{"a": 1}, {"c": 3}], 1)


def test_attempts_are_numbered_once_each(run):
    assert [run.claim_attempt() for _ in range(3)] == [1, 2, 3]
    assert run.holds_lease(3) and not run.holds_lease(2)


def test_the_writer_is_seen_while_it_lives_and_not_after(run):
    program = "import sys; from pathlib import Path; from pipeline.runs import RunFolder\n"
    program += "RunFolder(Path(sys.argv[1])).claim_attempt(); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(run.path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    writer = run.writer()
    assert writer is not None and writer["pid"] == other.pid
    other.kill()
    other.wait()
    assert run.writer() is None


def test_a_process_id_used_again_is_not_the_writer(run):
    run.claim_attempt()
    lease = json.loads(run.lease_file.read_text())
    name, pid, started = lease["process"].split("~")
    write_json(run.lease_file, {**lease, "process": f"{name}~{pid}~{int(started) - 1000}"})
    assert run.writer() is None


def test_a_clock_that_is_set_does_not_kill_the_writer(run, monkeypatch):
    """What the kernel calls the moment of the boot moves with the clock, and psutil's times of start with it."""
    import psutil._pslinux

    run.claim_attempt()
    booted = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted + 0.01)
    assert run.writer() is not None


def test_a_writer_elsewhere_lives_by_its_heartbeat(run):
    run.claim_attempt()
    lease = json.loads(run.lease_file.read_text())
    write_json(run.lease_file, {**lease, "process": "elsewhere~1~1"})
    assert run.writer() is not None, "it has only begun"
    write_json(run.lease_file, {**lease, "process": "elsewhere~1~1", "time": lease["time"] - 100})
    assert run.writer() is None
    run.beat(step=3)
    assert run.writer() is not None


def test_of_two_that_claim_at_once_one_holds_the_lease(run, monkeypatch):
    """The first stands still between taking its number and writing the lease; the second comes in between."""
    real, numbers = runs.write_json, []

    def slow(*args, **kwargs):
        if not numbers:
            numbers.append(0)
            numbers.append(run.claim_attempt())
        real(*args, **kwargs)

    monkeypatch.setattr(runs, "write_json", slow)
    first, second = run.claim_attempt(), numbers[1]
    assert (first, second) == (1, 2)
    assert run.holds_lease(second) and not run.holds_lease(first)


def test_an_attempt_that_cannot_be_written_down_is_refused_in_a_sentence(run):
    run.metrics.rmdir()
    with pytest.raises(RunFailed, match=r"toy/0123abcd cannot begin an attempt \(No such file"):
        run.claim_attempt()


def test_a_run_that_is_removed_while_runs_are_listed_is_left_out(run, tmp_path, monkeypatch):
    gone = RunFolder(tmp_path / "toy" / "89abcdef")
    gone.create()
    gone.config_file.write_text("model: {}\n")
    gone.record("created")
    real = runs._modified

    def modified(path):
        if path == gone.history_file:
            path.unlink()
        return real(path)

    monkeypatch.setattr(runs, "_modified", modified)
    assert list_runs(tmp_path) == [run]


def test_last_end_belongs_to_the_newest_attempt(run):
    run.record("attempt", attempt=1)
    run.record("end", attempt=1, reason="complete", step=5)
    assert run.last_end()["step"] == 5
    run.record("attempt", attempt=2)
    assert run.last_end() is None


def test_journals_join_to_one_line_of_steps(run):
    """Attempt 2 resumed after step 3, attempt 3 after step 2: what they repeated is dropped from the earlier ones."""
    for attempt, after, steps in ((1, 0, [1, 2, 3, 4, 5]), (2, 3, [4, 5, 6]), (3, 2, [3, 4])):
        journal = Journal(run.journal_file(attempt), attempt, after)
        for step in steps:
            journal.log(step, {"train/loss": step + attempt / 10})
        journal.close()
    points = list(read_journals(run.metrics))
    assert [(p.step, p.attempt) for p in points] == [(1, 1), (2, 1), (3, 3), (4, 3)]


def test_not_a_number_survives_the_journal_as_strict_json(run):
    journal = Journal(run.journal_file(1), 1, 0)
    journal.log(1, {"a": math.nan, "b": math.inf, "c": 0.5})
    journal.close()
    for line in run.journal_file(1).read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    values = next(iter(read_journals(run.metrics))).metrics
    assert math.isnan(values["a"]) and values["b"] == math.inf and values["c"] == 0.5


def test_a_disk_that_takes_no_more_warns_and_goes_on(run):
    journal = Journal(run.journal_file(1), 1, 0)
    real = journal._fd
    journal._fd = os.open("/dev/full", os.O_WRONLY)
    journal.log(1, {"a": 1.0})
    assert journal.trouble is not None and "No space left" in journal.trouble
    os.close(real)
    journal.close()


def test_a_disk_that_fills_in_the_middle_of_a_line_costs_that_line_and_no_other(run):
    journal = Journal(run.journal_file(1), 1, 0)
    journal.log(1, {"a": 1.0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.journal_file(1).stat().st_size + 20, before[1]))
    try:
        journal.log(2, {"a": 1.0})
        assert journal.trouble and "training goes on" in journal.trouble
        journal.trouble = None
        journal.log(3, {"a": 1.0})
        assert journal.trouble is None, "told once, not at every step"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.log(4, {"a": 1.0})  # there is room again
    assert journal.trouble and journal.trouble.endswith("metrics of 2 steps are lost")
    journal.log(5, {"a": 1.0})
    journal.close()
    assert [point.step for point in read_journals(run.metrics)] == [1, 4, 5]
    assert read_lines(run.journal_file(1))[1] == 1


WRITER = """
import sys
from pathlib import Path
from pipeline.journal import Journal
journal = Journal(Path(sys.argv[1]), 1, 0)
for step in range(1, 10**9):
    journal.log(step, {f"train/{number}": step / 7 for number in range(100)})
    print(step, flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_sigkill_loses_at_most_the_step_that_was_being_written(run, kills):
    draw = random.Random(kills)
    for _ in range(kills):
        path = run.journal_file(1)
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        told = [int(writer.stdout.readline()) for _ in range(draw.randrange(1, 200))]
        writer.kill()
        told += map(int, writer.communicate()[0].split())  # what had been logged when it died
        steps = [point.step for point in read_journals(run.metrics)]
        assert steps[: len(told)] == told and len(steps) <= len(told) + 1


def test_what_is_typed_comes_before_the_environment_and_that_before_the_profile(monkeypatch):
    monkeypatch.delenv("SLURMPHONY_RUNS", raising=False)
    assert runs.runs_root(None).name == "runs" and runs.runs_root(None, "/profile") == Path("/profile")
    monkeypatch.setenv("SLURMPHONY_RUNS", "/own")
    assert runs.runs_root(None, "/profile") == Path("/own") and runs.runs_root("/typed", "/profile") == Path("/typed")


def test_runs_are_found_by_folder_name_and_config(run, tmp_path):
    for text in (str(run.path), "toy/0123abcd", "toy"):
        assert find_run(text, tmp_path) == run
    assert list_runs(tmp_path) == [run]
    with pytest.raises(UserError, match=r"no run 'toi'.*Runs there: toy/0123abcd"):
        find_run("toi", tmp_path)
    with pytest.raises(UserError, match=r"holds no runs yet; start one with"):
        find_run("toy", tmp_path / "empty")
