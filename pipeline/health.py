"""Whether training is still sound, judged by what every rank knows alike; and what to do with the data where it is not.

Steps are exact, so a run that goes back to its last good checkpoint repeats itself up to the step that went wrong. There it must see
other data: the positions since the last step that was seen to be sound are left out from then on, by every later attempt.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from pipeline.config import Rollback
from pipeline.runs import RunFolder

REMEMBERED = 50  # logged losses that a leap is measured against
ENOUGH = 20  # of them, before any is called a leap
NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation

Window = tuple[int, int]  # [begin, end) of positions


class RolledBack(Exception):
    """This attempt has ended; the next one goes on from the last good checkpoint, past the data that did harm."""


def trouble(values: Mapping[str, float], losses: Sequence[float], section: Rollback) -> str | None:
    """What is wrong with a step whose means over all ranks are ``values``, in words; None where nothing is.

    Args:
        losses: of earlier logged steps, sound ones.
    """
    for name in sorted(values, key=lambda name: (not name.endswith("/loss"), name)):
        kind = name.rpartition("/")[2]
        if (kind == "loss" or kind.startswith("grad_norm")) and not math.isfinite(values[name]):
            what = "loss" if kind == "loss" else f"norm of the gradient ({kind})"
            return f"the {what} is {values[name]}"
    if section.spike is None or len(losses) < ENOUGH:
        return None
    middle = statistics.median(losses)
    deviation = NORMAL * statistics.median(abs(loss - middle) for loss in losses)
    loss = values["train/loss"]
    if loss > middle + section.spike * max(deviation, 1e-9):
        return f"the loss leapt to {loss:.4g} from about {middle:.4g}"
    return None


def first_bad(losses: Iterable[float]) -> float:
    """Which of a rank's losses, in their order, is the first that is not finite; infinity where all are."""
    return next((float(i) for i, loss in enumerate(losses) if not math.isfinite(loss)), math.inf)


def guilty(firsts: Sequence[float]) -> tuple[int, int] | None:
    """(rank, which of its losses) where it began, by each rank's ``first_bad``; None where that tells no rank apart.

    A step later the weights of all ranks are spoilt, and with them every rank's loss.
    """
    began = min(firsts)
    bad = [rank for rank, first in enumerate(firsts) if first == began]
    return (bad[0], int(began)) if math.isfinite(began) and len(bad) < len(firsts) else None


def given_up(run: RunFolder) -> list[Window]:
    """The windows that this run's rollbacks have given up, in the order in which they happened."""
    return [(event["skip"][0], event["skip"][1]) for event in run.history() if event["event"] == "rolled_back"]
