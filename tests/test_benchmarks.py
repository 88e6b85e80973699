"""What benchmarks hand over, and the one table that is made of it."""

import itertools
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.__main__ import names, run
from benchmarks.measure import in_pairs
from benchmarks.results import Run, keep, kept, markdown
from benchmarks.rows import FOLDER, Grid, Row, amount, hand_over, handed_over, ratios

COST = Row("a step", "402 us", "bare loop: 41 us", [361e-6, 358e-6, 402e-6], "s", at_most=300e-6)
SHARE = Row("waiting", "ours", "a step", [0.0098, 0.0101, 0.2], "%", at_most=0.02)
GRID = Grid("seconds by size", ("size", "seconds"), [("1 MB", "0.3"), ("4 MB", "0.4")])
SEEN = Row("an import", "ours", "MLflow", ratios([1.0, 2.0], [2.0, 2.0]))


def test_a_row_says_its_spread_and_whether_it_holds():
    assert (COST.shown, COST.asked, COST.holds) == ("361 us (358 .. 402)", "<= 300 us", False)
    assert (SHARE.shown, SHARE.asked, SHARE.holds) == ("1.01 % (0.980 .. 20.0)", "<= 2.00 %", True)
    assert (SEEN.shown, SEEN.asked, SEEN.holds) == ("0.750 x (0.500 .. 1.00)", "", None)
    assert Row("", "", "", [0.3], at_least=0.4).holds is False and Row("", "", "", [0.0], at_least=0.0).holds is True
    assert amount([2.2e9], "B/s") == "2.20 GB/s" and amount([1234.5], "s") == "1,234 s"
    with pytest.raises(ValueError, match="no values"):
        Row("a step", "", "", [])


def test_rows_arrive_as_they_were_handed_over(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    hand_over("a", [COST, SHARE])
    hand_over("b", [SEEN], [GRID])
    rows, (grid,) = handed_over(tmp_path)
    assert rows == [COST, SHARE, SEEN]
    assert (grid.title, grid.rows) == ("seconds by size", [["1 MB", "0.3"], ["4 MB", "0.4"]])


def test_one_that_fails_is_told_by_its_last_words_and_hides_no_other(tmp_path):
    failed = run("loader", ["--sizes", "17"], tmp_path / "log")
    assert failed.rows == [] and failed.failure
    page = markdown([failed, Run("python -m benchmarks.trainer", 3.0, [COST, SEEN], grids=[GRID])])
    assert "Failed; its log" in page and failed.failure not in page, "last words may hold a path of this machine"
    assert "| a step | 402 us | bare loop: 41 us | 361 us (358 .. 402) |" in page
    assert "seconds by size:\n\n| size | seconds |\n| --- | --- |\n| 1 MB | 0.3 |" in page


def test_the_page_is_of_what_each_last_run_left(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LOGS", tmp_path)
    keep("a", Run("first", 1.0, [COST], grids=[GRID]))
    keep("b", Run("other", 1.0, [], "it said nothing"))
    keep("a", Run("second", 2.0, [SEEN], grids=[GRID]))
    again, other = kept(["a", "never run", "b"])
    assert (again.command, again.rows, other.failure) == ("second", [SEEN], "it said nothing")
    assert "seconds by size" in markdown([again])


def test_all_that_hand_rows_over_are_run():
    assert {"loader", "trainer", "checkpoint", "launch", "prepare", "sync", "mirror", "console", "parts"} <= set(
        names()
    )
    assert not {"rows", "__main__", "flac_stage", "measure"} & set(names())


def test_contenders_take_turns_and_the_first_rounds_do_not_count():
    played, ticks = [], itertools.count()
    ours, theirs = in_pairs(lambda: played.append("a"), lambda: played.append("b"), 2, lambda: next(ticks), warm=1)
    assert played == ["a", "b", "b", "a", "a", "b"] and ours == theirs == [1, 1]


@pytest.mark.skipif(
    find_spec("dasp_pytorch") is not None, reason="dasp-pytorch is installed: its reverb takes a minute"
)
def test_without_its_rival_the_console_says_so_and_hands_over_the_rest(tmp_path):
    done = run("console", ["--seconds", "1", "--rounds", "1"], tmp_path / "log")
    assert done.failure is None and [row.what for row in done.rows] == ["console: equaliser of 6 bands, 1 s"]
    assert "dasp-pytorch is not installed" in (tmp_path / "log").read_text()


def test_what_only_benchmarks_need_is_pinned_and_in_no_other_environment():
    root = Path(__file__).resolve().parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    rivals = set(project["optional-dependencies"]["bench"])
    pinned = {line.split("==")[0] for line in (root / "constraints.txt").read_text().splitlines() if "==" in line}
    others = [words for name, words in project["optional-dependencies"].items() if name != "bench"]
    assert rivals and rivals <= pinned and not rivals & {*project["dependencies"], *itertools.chain(*others)}
