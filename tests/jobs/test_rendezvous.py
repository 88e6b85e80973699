"""Processes find each other whatever else listens on the machine."""

import resource
import socket
import threading
from contextlib import ExitStack

import pytest

from jobs.rendezvous import PORTS, _find, _serve, candidate_ports
from pipeline.errors import RunFailed

LAUNCHES = 50


@pytest.fixture
def crowded():
    """19 of 20 ports of the whole range are taken, by others or by us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * len(PORTS)), hard))
    with ExitStack() as held:
        for port in PORTS:
            if port % 20 == 7:
                continue
            listener = held.enter_context(socket.socket(socket.AF_INET6))
            try:
                listener.bind(("::", port))
            except OSError:  # taken already
                continue
            listener.listen(1)
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_fifty_launches_with_19_of_20_ports_taken(crowded, tmp_path):
    kept = []
    for launch in range(LAUNCHES):
        path = tmp_path / f"{launch}.json"
        found = []
        other = threading.Thread(target=lambda path=path, found=found: found.append(_find(path)))
        other.start()
        store = _serve(path, f"job-{launch}_0", "127.0.0.1")
        store.set("word", str(launch))
        other.join(timeout=60)
        assert found[0].get("word") == str(launch).encode()
        kept.append((store, found[0]))  # several jobs on one node: none gives its port back
    assert len({store.port for store, _ in kept}) == LAUNCHES


def test_a_requeued_job_tries_other_ports_first():
    first, second = candidate_ports("17_0"), candidate_ports("17_1")
    assert first != second and sorted(first) == sorted(second) == list(PORTS)
    assert candidate_ports("17_0") == first, "the same on every rank"
    assert max(PORTS) < 32768


def test_no_port_at_all_is_one_sentence(monkeypatch, tmp_path):
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::", 0))
        listener.listen(1)
        taken = listener.getsockname()[1]
        monkeypatch.setattr("jobs.rendezvous.PORTS", range(taken, taken + 1))
        with pytest.raises(RunFailed, match=rf"no free port from {taken} to {taken} on 127.0.0.1"):
            _serve(tmp_path / "store.json", "key", "127.0.0.1")
