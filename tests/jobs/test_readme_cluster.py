"""README_CLUSTER.md as a user types it, top to bottom, in a clone, on the practice cluster."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runs import list_runs
from tests.conftest import ROOT

# Typed by others: .ci/run installs the packages, and what `source` does is done below.
ELSEWHERE = ("sudo apt install", "source .venv/bin/activate")
PROFILE = {
    "partition: null": "partition: gpu",
    "cpus_per_gpu: 8": "cpus_per_gpu: 1",
    'time: "12:00:00"': 'time: "0:30:00"',
}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README_CLUSTER.md").read_text(), re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def working_tree() -> list[Path]:
    """What git would take from it; where this is no repository, everything but what commands make."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        made = {".venv", "runs", "data", "build", "__pycache__", ".git", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
        found = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


class Shell:
    """Where a person types: a folder and an environment that some commands change."""

    def __init__(self, folder: Path, raw: Path, env: dict[str, str]) -> None:
        self.folder, self.raw, self.cwd = folder, raw, folder
        self.env = {**os.environ, **env, "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
        self.env.pop("PYTHONPATH", None)

    def type(self, line: str) -> None:
        line = line.replace("/path/to/cocochorales", str(self.raw)).replace(
            "/path/on/scratch", str(self.folder / "scratch")
        )
        if line.startswith("git clone"):
            self.clone()
        elif line.startswith("export "):
            self.env |= dict(word.split("=", 1) for word in shlex.split(line)[1:])
        else:
            self.run(line)
        if line.startswith("cp configs/clusters"):
            self.fill_in(self.cwd / "configs" / "clusters" / "mycluster.yaml")

    def run(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.cwd, env=self.env, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        if line == "make cluster":
            (told,) = re.findall(
                r"^export SLURM_CONF=(.+)$", done.stdout, re.M
            )  # make says more where another make calls it
            self.env["SLURM_CONF"] = told
        return done.stderr

    def clone(self) -> None:
        """The working tree as it is now, so that what is tested is what will be committed."""
        self.cwd = self.folder / "slurmphony"
        for path in working_tree():
            target = self.cwd / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        (self.cwd / ".venv").symlink_to(sys.prefix)
        self.env["PYTHONPATH"] = str(self.cwd)  # the environment is installed for the folder that the tests run in

    def fill_in(self, profile: Path) -> None:
        text = profile.read_text()
        for blank, filled in PROFILE.items():
            assert blank in text
            text = text.replace(blank, filled)
        profile.write_text(text)


@pytest.fixture
def shell(slurm, demo_data, tmp_path):
    shell = Shell(tmp_path, demo_data.parent / "raw", slurm.environment)
    yield shell
    subprocess.run(["make", "cluster-down"], cwd=shell.cwd, env=shell.env, capture_output=True)


def test_every_command_of_the_page(slurm, shell):
    """Training for days is not what is tested here: the full-size jobs wait in the queue, behind a job that holds the nodes."""
    blocker = None
    for line in commands():
        if line.startswith("python jobs/launch.py") and blocker is None:
            blocker = slurm.sbatch(
                "--output=/dev/null", "--partition=gpu", "--nodes=3", "--exclusive", "--time=60", "--wrap", "sleep 3000"
            )
            slurm.wait(blocker, "RUNNING")
        if line.startswith("python monitoring/logs.py"):
            (list_runs(Path(shell.env["SLURMPHONY_RUNS"]))[0].logs / "1_0_log.out").write_text("as if it had begun\n")
        if not line.startswith(ELSEWHERE):
            print(f"$ {line}", flush=True)
            shell.type(line)
    reasons = [(run.last_end() or {}).get("reason") for run in list_runs(Path(shell.env["SLURMPHONY_RUNS"]))]
    assert reasons.count("complete") == 1, "the practice run; the others were waiting"
    assert "dismix_simple" in slurm.run("squeue", "-h", "-o", "%j").stdout
