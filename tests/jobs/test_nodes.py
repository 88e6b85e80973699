"""The nodes that are out: an entry each, so that none is lost; gone after a day."""

import json
import subprocess
import sys

from jobs.nodes import FOLDER, exclude, excluded
from pipeline.runs import RunFolder
from tests.conftest import ROOT

EXCLUDE = """
import sys
from pathlib import Path
from jobs.nodes import exclude
from pipeline.runs import RunFolder

runs, who = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    exclude(runs, f"n{who}-{number}", "it computes wrongly", RunFolder(runs / "demo" / "0123abcd"))
"""


def test_runs_that_write_at_once_lose_no_node(tmp_path):
    words = [sys.executable, "-c", EXCLUDE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT, "text": True}
    writers = [subprocess.Popen([*words, who], **pipes) for who in ("1", "2")]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.wait(timeout=60) == 0
        writer.stdin.close()
        writer.stdout.close()
    assert len(excluded(tmp_path)) == 200


def test_an_entry_says_why_and_ends_by_itself(tmp_path):
    assert excluded(tmp_path) == {}
    for node in ("127.0.0.11", "n2"):
        exclude(tmp_path, node, "it went DOWN", RunFolder(tmp_path / "demo" / "0123abcd"))
    entry = excluded(tmp_path)["127.0.0.11"]
    assert entry["why"] == "it went DOWN" and entry["run"] == "demo/0123abcd"
    (tmp_path / FOLDER / "n2.json").write_text(json.dumps({**entry, "until": 1}))
    (tmp_path / FOLDER / "n3.json").write_text("{torn")
    assert set(excluded(tmp_path)) == {"127.0.0.11"}
