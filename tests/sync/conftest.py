"""One login node a session; every test finds it empty."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

import jobs.profiles
from tests.sync.far_side import FarSide, login_node


@pytest.fixture(scope="session")
def session_far_side() -> Iterator[FarSide]:
    yield from login_node()


@pytest.fixture
def far(session_far_side: FarSide, monkeypatch) -> Iterator[FarSide]:
    """The login node, and this process as the laptop."""
    monkeypatch.setattr(jobs.profiles, "PROFILES", session_far_side.profiles)
    for name in ("PATH", "HOME"):
        monkeypatch.setenv(name, session_far_side.environment[name])
    yield session_far_side
    here = (path for path in session_far_side.here.iterdir() if path.name != "home")
    for path in (session_far_side.there, session_far_side.profiles, *here):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    session_far_side.runs.mkdir(parents=True)
    session_far_side.profiles.mkdir()
    session_far_side.profile()
