"""The look at the nodes before a run begins: a sound world passes, a bad node is named."""

import threading
import time

import pytest
import torch
from torch.distributed import HashStore

from jobs import gate as gates
from jobs.gate import BadNode, Finding, blame, gate
from pipeline.world import World


def found(*problems: str, seconds=None) -> list[Finding]:
    took = seconds or [1.0] * len(problems)
    return [Finding(rank, f"node{rank // 2}", took[rank], problem) for rank, problem in enumerate(problems)]


def test_one_process_passes():
    assert gate(World(), None, "key", "here", {})["product_s"] > 0


def test_who_is_wrong_is_blamed_and_only_that_node():
    assert blame(found("", "", "", ""), compare=True) is None
    assert blame(found("", "", "3 products are wrong", ""), compare=False) == {"node1": "3 products are wrong"}


def test_what_all_nodes_see_alike_is_no_nodes_fault():
    assert blame(found("the sum failed", "", "the sum failed", ""), compare=False) == {}


def test_a_far_slower_gpu_is_blamed_where_they_are_compared():
    slow = found("", "", "", "", seconds=[1.0, 1.1, 1.0, 3.5])
    assert blame(slow, compare=False) is None
    assert blame(slow, compare=True) == {"node1": "rank 3 took 3.50 s where 1.05 s is usual"}


def test_what_takes_no_time_to_speak_of_is_no_fault():
    """Products take milliseconds, and something else may run for a while."""
    assert blame(found("", "", "", "", seconds=[0.02, 0.02, 0.03, 0.09]), compare=True) is None
    assert blame(found("", "", "", "", seconds=[0.02, 0.02, 0.03, 0.11]), compare=True) is not None


def test_what_starts_at_the_first_product_is_not_timed(monkeypatch):
    """A clock that only products move: the first by a minute, each later one by a hundredth of a second."""
    right, passed = torch.mm, []

    def mm(a, b):
        passed.append(0.01 if passed else 60.0)
        return right(a, b)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(gates.time, "perf_counter", lambda: sum(passed))
    assert gate(World(), None, "key", "here", {})["product_s"] == pytest.approx(0.01 * gates.PRODUCTS)


def test_a_silent_rank_is_named_with_its_node(monkeypatch):
    """Rank 0 of two; the other never says a word."""
    for limit in ("STARTING", "SECONDS", "PATIENCE"):
        monkeypatch.setattr(gates, limit, 0.5)
    with pytest.raises(BadNode, match="node1: rank 1 is silent") as error:
        gate(World(0, 2, 0, 1, 0), HashStore(), "key", "node0", {0: "node0", 1: "node1"})
    assert error.value.nodes == {"node1": "rank 1 is silent"}


class Sum:
    """A sum over ranks that is done after ``seconds``."""

    def __init__(self, seconds=0.0):
        self._done = time.monotonic() + seconds

    def is_completed(self):
        return time.monotonic() > self._done

    def wait(self):
        pass


@pytest.mark.parametrize(
    ("meets", "adds", "said"),
    [(0.0, 0.0, ""), (0.6, 0.0, ""), (60.0, 0.0, "did not come up within 1 s"), (0.0, 60.0, "did not finish in 0 s")],
)
@pytest.mark.parametrize("blocks", [False, True], ids=["waits", "blocks"])
def test_networks_that_come_up_late_pass_and_dead_ones_have_an_end(monkeypatch, meets, adds, said, blocks):
    """NCCL sets up its rings within the first call, which may never return; later calls return at once."""
    monkeypatch.setattr(gates, "STARTING", 1.0)
    monkeypatch.setattr(gates, "SECONDS", 0.4)
    calls = []

    def all_reduce(numbers, async_op):
        calls.append(numbers.numel())
        seconds = meets if len(calls) == 1 else adds
        if blocks:
            time.sleep(min(seconds, 3))
        numbers.fill_(3.0)
        return Sum(0.0 if blocks and seconds < 3 else seconds)

    monkeypatch.setattr(gates.dist, "all_reduce", all_reduce)
    found = gates._sum(World(0, 2, 0, 1, 0), torch.device("cpu"), "here")
    assert said in found.problem and bool(said) == bool(found.problem)
    assert calls[0] == 1 and (said or found.seconds < 0.4), "the time that it took to meet is not the sum's"


def test_the_verdict_reaches_every_rank(monkeypatch):
    monkeypatch.setattr(
        gates, "_product", lambda world, device, node: Finding(world.rank, node, 0.1, "broken" * world.rank)
    )
    store, said = HashStore(), []

    def rank(number: int) -> None:
        try:
            gate(World(number, 2, 0, 1, number), store, "key", f"node{number}", {})
        except BadNode as bad:
            said.append(bad.nodes)

    threads = [threading.Thread(target=rank, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert said == [{"node1": "broken"}] * 2
