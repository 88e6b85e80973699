"""Which ranks of a local launch are said to have failed, where several end at once."""

import signal
import subprocess
import time

import pytest

from jobs import local


@pytest.mark.parametrize(
    ("ways", "failed"),
    [
        (("exit 0", "exit 0"), []),
        (("exit 1", "kill -KILL $$"), [1, 0]),  # it complains of the other's death, which came first
        (("exit 2", "exit 1"), [0, 1]),
        (("sleep 60", "kill -SEGV $$", "exit 0"), [1]),
    ],
)
def test_who_was_killed_comes_before_who_complains_of_it(monkeypatch, ways, failed):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.2)
    ranks = [subprocess.Popen(["sh", "-c", way]) for way in ways]
    ended = [rank for rank, way in zip(ranks, ways, strict=True) if not way.startswith("sleep")]
    deadline = time.monotonic() + 30
    while any(rank.poll() is None for rank in ended) and time.monotonic() < deadline:
        time.sleep(0.01)  # so that the launcher sees all of them at its first look
    try:
        assert local._wait(ranks) == failed
    finally:
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
            rank.wait()
