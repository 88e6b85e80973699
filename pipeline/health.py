"""Whether training is still sound, judged by what every rank knows alike; and what to do with the data where it is not.

Steps are exact, so a run that goes back to its last good checkpoint repeats itself up to the step that went wrong. There it must see
other data: the positions since the last step that was seen to be sound are left out from then on, by every later attempt.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

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


def guilty(losses: Sequence[float]) -> int | None:
    """The first rank whose own loss is not finite, of several ranks' ``losses``; None where that tells none apart."""
    bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    return bad[0] if 0 < len(bad) < len(losses) else None


def given_up(run: RunFolder) -> list[Window]:
    """The windows that this run's rollbacks have given up, in the order in which they happened."""
    return [(event["skip"][0], event["skip"][1]) for event in run.history() if event["event"] == "rolled_back"]
