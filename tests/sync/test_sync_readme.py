"""The pages' commands for the laptop are commands: their words are understood."""

from __future__ import annotations

import importlib
import re
import shlex

import jobs.profiles
from tests.conftest import ROOT


def test_every_sync_command_of_the_pages_is_understood(tmp_path, monkeypatch):
    (tmp_path / "mycluster.yaml").write_text("scheduler: slurm\n")
    monkeypatch.setattr(jobs.profiles, "PROFILES", tmp_path)
    monkeypatch.setenv("SLURMPHONY_RUNS", str(tmp_path))
    seen = set()
    for page in ("README.md", "README_CLUSTER.md"):
        for line in re.findall(r"^python ((?:sync|monitoring/dashboard)\S*\.py.*)$", (ROOT / page).read_text(), re.M):
            script, *words = shlex.split(line, comments=True)
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            module.parse(words)
            seen.add(script)
    assert seen == {"sync/push.py", "sync/pull.py", "sync/verify.py", "monitoring/dashboard.py"}
