"""What several tests stand on: a small corpus made and prepared by the project's own commands, once a session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import browser, page  # noqa: F401
from tests.cluster.fixtures import *  # noqa: F403  one practice cluster a session, whoever asks for it

ROOT = Path(__file__).resolve().parent.parent


def command(
    *words: object, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run one of our commands as a user would type it, from the repository's root."""
    line = [sys.executable, *map(str, words)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory) -> Path:
    """A data root with a few tracks of `cocochorales_simple_demo`."""
    folder = tmp_path_factory.mktemp("data")
    made = command("data_prep/demo.py", "cocochorales", "--out", folder / "raw", "--tracks", 24, "--seed", 1)
    assert made.returncode == 0, made.stderr
    recipe = ("--recipe", "cocochorales_simple_demo")
    prepared = command(
        "data_prep/prepare.py", "cocochorales", "--source", folder / "raw", *recipe, "--out", folder / "shards"
    )
    assert prepared.returncode == 0, prepared.stderr
    return folder / "shards"
