"""Rank 0 on the terminal and in its log: every word of it, and of a line that is drawn over again only the last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from jobs.terminal import Speaker
from monitoring.logs import rank_logs
from tests.monitoring.run_factory import make_run

DRAWS = """
import sys
print("to stdout", flush=True)
sys.stderr.write("\\x1b[?25l\\r\\x1b[2Kbar \\x1b[35m 1%\\x1b[0m\\r\\x1b[2Kbar \\x1b[35m99%\\x1b[0m")
sys.stderr.write("\\r\\x1b[2Kwarning: caf\\xe9\\n")
sys.stderr.flush()
sys.stderr.write("the end without a newline")
"""


def spoken(log, program: str) -> None:
    speaker = Speaker(log)
    rank = subprocess.Popen(
        [sys.executable, "-c", program], stdout=speaker.end, stderr=subprocess.STDOUT, env={"PYTHONIOENCODING": "utf8"}
    )
    speaker.started()
    assert rank.wait(30) == 0
    speaker.finish()


def test_what_rank_0_says_is_on_the_terminal_as_it_drew_it_and_in_its_log_in_lines(tmp_path, capfd):
    run = make_run(tmp_path)
    log = run.logs / "local_abc_rank0.log"
    spoken(log, DRAWS)
    assert log.read_text() == "to stdout\nwarning: café\nthe end without a newline\n"
    terminal = capfd.readouterr().err
    assert "\x1b[35m99%" in terminal and re.search("1%.*99%.*the end", terminal, re.DOTALL)
    assert [(x.job, x.rank) for x in rank_logs(run)] == [("abc", 0)]


def test_much_of_it_waits_for_nobody_and_a_log_that_takes_no_more_costs_the_terminal_nothing(tmp_path, capfd):
    many = "for i in range(20000): print(i, 'x' * 20)"  # more than a pipe holds
    spoken(tmp_path / "log", many)
    assert (tmp_path / "log").read_text().splitlines()[-1] == "19999 " + "x" * 20
    capfd.readouterr()
    spoken(Path("/dev/full"), "print('all the same')")
    told = capfd.readouterr().err
    assert "all the same" in told and "rank 0's log cannot be written (No space left on device)" in told
