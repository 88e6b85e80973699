"""Choices on the disk: the last one counts, undo takes it back, and neither a kill nor a full disk costs more than the line it tore."""

import resource
import signal
import subprocess
import sys

import pytest

from pipeline.choices import append_choice, choices_file, read_choices, read_rater
from pipeline.errors import UserError

APPENDING = """
import sys; from pathlib import Path; from pipeline.choices import append_choice
for i in range(int(sys.argv[3])):
    append_choice(Path(sys.argv[1]), sys.argv[2], f"{sys.argv[2]}{i:06d}", "a", 1.5, durable=False)
    print(i, flush=True)
"""


def appending(run, rater, count):
    command = [sys.executable, "-c", APPENDING, str(run), rater, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def verdicts(run):
    chosen, trouble = read_choices(run)
    return [(c.rater, c.pair, c.choice) for c in chosen], trouble


def test_the_last_choice_of_a_pair_counts_and_undo_takes_it_back(tmp_path):
    for rater, pair, choice in [
        ("bo", "p1", "a"), ("anna", "p1", "tie"), ("anna", "p2", "skip"), ("anna", "p3", "a"),
        ("anna", "p3", "undo"), ("anna", "p1", "b"), ("anna", "p9", "undo"),
    ]:  # fmt: skip
        line = append_choice(tmp_path, rater, pair, choice, 2)
        assert line.time.endswith("+00:00") and line.seconds == 2
    assert verdicts(tmp_path) == ([("anna", "p2", "skip"), ("anna", "p1", "b"), ("bo", "p1", "a")], [])
    assert len(choices_file(tmp_path, "anna").read_text().splitlines()) == 6, "nothing is ever rewritten"


def test_no_choices_yet_are_no_error(tmp_path):
    assert read_choices(tmp_path) == ([], []) and read_rater(tmp_path, "anna") == ([], [])


@pytest.mark.parametrize(
    "name", ["", "Anna", "../anna", "a/b", "a.b", "anna\n", "-a", "<script>", "ä", "a" * 41, "a\0"]
)
def test_a_rater_becomes_a_file_name_and_is_called_accordingly(tmp_path, name):
    with pytest.raises(UserError, match="cannot name a rater"):
        append_choice(tmp_path, name, "p1", "a", 1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pair", "choice", "seconds"),
    [("p1", "left", 1), ("", "a", 1), ("p1", "a", -1), ("p1", "a", float("nan")), ("p1", "a", "1"), (7, "a", 1)],
)
def test_what_would_not_be_read_is_not_written(tmp_path, pair, choice, seconds):
    with pytest.raises(ValueError, match="no choice"):
        append_choice(tmp_path, "anna", pair, choice, seconds)
    assert not any(tmp_path.iterdir())


def test_torn_and_foreign_lines_are_left_out_and_said(tmp_path):
    append_choice(tmp_path, "anna", "p1", "a", 1)
    path = choices_file(tmp_path, "anna")
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"[1]\n" + whole.replace(b'"anna"', b'"bo"') + whole.replace(b'"a"', b'"left"') + whole[:25])
    append_choice(tmp_path, "anna", "p2", "b", 1)
    path.with_name("Not A Rater.jsonl").write_bytes(whole)
    chosen, trouble = verdicts(tmp_path)
    assert chosen == [("anna", "p1", "a"), ("anna", "p2", "b")]
    assert "no rater's" in trouble[0] and "anna.jsonl: 4 lines left out" in trouble[1] and len(trouble) == 2


def test_kill_9_while_writing_costs_at_most_the_line_it_tore(tmp_path):
    writer = appending(tmp_path, "anna", 10**6)
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(200)]
    writer.send_signal(signal.SIGKILL)
    said += [int(line) for line in writer.stdout.read().split(b"\n")[:-1]]
    writer.wait()
    before, trouble = verdicts(tmp_path)
    assert len(before) >= len(said) and len(trouble) <= 1
    append_choice(tmp_path, "anna", "next", "b", 1)
    assert verdicts(tmp_path)[0] == [*before, ("anna", "next", "b")]


def test_several_processes_may_write_for_one_rater(tmp_path):
    writers = [appending(tmp_path, "anna", 200) for _ in range(2)]
    for writer in writers:
        writer.communicate()
    lines = (
        choices_file(tmp_path, "anna").read_bytes().split(b"\n")
    )  # empty ones: who saw the other's line half written closed it
    assert len([line for line in lines if line]) == 400 and not read_choices(tmp_path)[1]


def test_a_disk_that_takes_half_a_line_is_an_error_and_the_half_is_left_out(tmp_path):
    append_choice(tmp_path, "anna", "p1", "a", 1)
    path = choices_file(tmp_path, "anna")
    room = path.stat().st_size + 30
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        with pytest.raises(OSError, match="No space left"):
            append_choice(tmp_path, "anna", "p2", "a", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.stat().st_size == room
    append_choice(tmp_path, "anna", "p3", "a", 1)
    chosen, trouble = verdicts(tmp_path)
    assert [pair for _, pair, _ in chosen] == ["p1", "p3"] and "1 line left out" in trouble[0]
