"""How often to save: against a search over intervals, not against the formula."""

import pytest

from jobs.interval import Saving, best_interval


def lost(interval: float, saving: Saving, mtbf: float) -> float:
    """The share of time that stalls and failures cost, to first order: a failure takes back half an interval."""
    return saving.stall / interval + interval / (2 * mtbf)


@pytest.mark.parametrize("mtbf", [3600.0, 86400.0, 1e7])
def test_no_other_interval_loses_less(mtbf):
    saving = Saving(write=5.0, stall=1.0)
    best = best_interval(saving, mtbf)
    others = [best * 1.05**k for k in range(-60, 61)]
    assert lost(best, saving, mtbf) <= 1.0001 * min(lost(interval, saving, mtbf) for interval in others)


def test_a_save_has_time_to_be_written():
    assert best_interval(Saving(write=600.0, stall=0.1), 3600.0) == 600.0
    assert best_interval(Saving(write=1.0, stall=9000.0), 3600.0) == 3600.0, "nothing is gained by saving more often"


def test_the_smallest_checkpoint_takes_a_second_and_a_large_one_what_its_bytes_take():
    assert Saving.of_bytes(1).write == 1.0 and Saving.of_bytes(20 * 10**9).write == 20.0
