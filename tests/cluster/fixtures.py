"""Pytest fixtures: a SLURM for the session, tidied up after every test.

A conftest.py imports all four; tests ask for `slurm` or `slurm_accounting` and get a `Cluster` that is idle and whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import processes
from tests.cluster.cluster import Cluster
from tests.cluster.layout import ACCOUNTING_PACKAGES, PACKAGES, missing_programs

__all__ = ["session_slurm", "session_slurm_accounting", "slurm", "slurm_accounting"]

PREFIX = "slurm-test-"


@pytest.fixture(scope="session")
def session_slurm(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster without accounting that several tests share; `slurm` is the one to ask for."""
    yield from _session(request, accounting=False)


@pytest.fixture(scope="session")
def session_slurm_accounting(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster with accounting that several tests share; `slurm_accounting` is the one to ask for."""
    yield from _session(request, accounting=True)


@pytest.fixture
def slurm(session_slurm: Cluster) -> Iterator[Cluster]:
    """An idle cluster of three nodes with four GPUs each; whatever a test leaves is cancelled, killed, revived."""
    yield session_slurm
    tidy(session_slurm)


@pytest.fixture
def slurm_accounting(session_slurm_accounting: Cluster) -> Iterator[Cluster]:
    """As `slurm`, with slurmdbd: sacct answers, accounts and QOS are enforced."""
    yield session_slurm_accounting
    tidy(session_slurm_accounting)


def require_slurm(*, accounting: bool) -> None:
    """Skip where SLURM is not installed, saying what to install; in CI that is a failure, for there nothing may be skipped."""
    lacking = missing_programs(accounting=accounting)
    if not lacking:
        return
    packages = f"{PACKAGES} {ACCOUNTING_PACKAGES}" if accounting else PACKAGES
    text = f"NOT TESTED: no SLURM on this machine ({', '.join(lacking)} missing); install it: {packages}"
    if os.environ.get("CI"):
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def tidy(cluster: Cluster) -> None:
    """No job, no task, every daemon: as after `up`."""
    if not cluster.is_up:
        cluster.up_controller()
    cluster.cancel_all()
    processes.kill(cluster.tasks())
    for node in cluster.nodes:
        cluster.revive(node)


def new_folder() -> Path:
    """A folder for a cluster; short, because of its sockets, and named after this process, so that `sweep` knows whose it was."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def sweep() -> None:
    """Take down what a killed test session left running, and remove what a failed one kept."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = int(folder.name.removeprefix(PREFIX).partition("-")[0])
        try:
            if folder.stat().st_uid == os.getuid() and not processes.exists(owner):
                Cluster(folder).down()
                shutil.rmtree(folder)
        except FileNotFoundError:  # another session sweeps, too
            continue


def _session(request: pytest.FixtureRequest, *, accounting: bool) -> Iterator[Cluster]:
    require_slurm(accounting=accounting)
    sweep()
    failed_before = request.session.testsfailed
    cluster = Cluster(new_folder(), accounting=accounting)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        if request.session.testsfailed > failed_before:
            print(f"SLURM's logs are kept in {cluster.layout.logs} until the next session")
        else:
            shutil.rmtree(cluster.layout.folder)
