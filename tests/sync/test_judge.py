"""The rules alone: every combination of what was written down, what is here and what is there."""

from __future__ import annotations

import pytest

from sync.judge import HERE, THERE, Fault, Written, judge

GOOD, BAD, LATER = (5, 1, "aa"), (5, 1, "bb"), (6, 2, "cc")
SHORT, LONG = (4, 1, "dd"), (7, 1, "ee")
CHECKPOINT = "checkpoints/step_000000010/model.safetensors"


def faults(name, here, there, *, others=()):
    written = {name: Written(5, "aa", (1, "aa"))}
    far = None if there == "not asked" else dict.fromkeys(others, GOOD) | ({name: there} if there else {})
    return list(judge(written, {name: here} if here else {}, far))


@pytest.mark.parametrize("name", ["samples/a.wav", "metrics/attempt_001.jsonl", CHECKPOINT, "config.yaml"])
@pytest.mark.parametrize(
    ("here", "kind"), [(GOOD, None), (BAD, "damaged"), (SHORT, "truncated"), (LONG, "too long"), (None, "missing")]
)
def test_here_alone_and_against_a_good_cluster(name, here, kind):
    assert faults(name, here, "not asked") == ([Fault(name, kind, HERE)] if kind else [])
    assert faults(name, here, GOOD) == ([Fault(name, kind, HERE, THERE)] if kind else [])


@pytest.mark.parametrize("name", ["samples/a.wav", "metrics/attempt_001.jsonl", CHECKPOINT])
@pytest.mark.parametrize(("there", "kind"), [(BAD, "damaged"), (SHORT, "truncated"), (LONG, "too long")])
def test_the_cluster_is_wrong_and_this_side_good_or_neither(name, there, kind):
    assert faults(name, GOOD, there) == [Fault(name, kind, THERE, HERE)]
    assert faults(name, BAD, there) == [Fault(name, "damaged", HERE), Fault(name, kind, THERE)]


def test_a_cluster_that_went_on_is_not_at_fault():
    assert faults("samples/a.wav", GOOD, LATER) == []
    assert faults("samples/a.wav", BAD, LATER) == [Fault("samples/a.wav", "damaged", HERE, THERE)]
    assert faults("config.yaml", GOOD, (4, 2, "ff")) == []


def test_what_only_grows_never_shrinks_and_a_checkpoint_never_changes():
    journal = "metrics/attempt_001.jsonl"
    assert faults(journal, GOOD, LATER) == []
    assert faults(journal, GOOD, (4, 2, "ff")) == [Fault(journal, "truncated", THERE, HERE)]
    assert faults(CHECKPOINT, GOOD, LATER) == [Fault(CHECKPOINT, "too long", THERE, HERE)]


def test_a_pruned_checkpoint_is_gone_by_right_a_single_file_is_not():
    assert faults(CHECKPOINT, GOOD, None) == []
    assert faults(CHECKPOINT, None, None) == [Fault(CHECKPOINT, "missing", HERE)]
    sibling = "checkpoints/step_000000010/state.json"
    assert faults(CHECKPOINT, GOOD, None, others=[sibling]) == [Fault(CHECKPOINT, "missing", THERE, HERE)]
    assert faults("code_12/a.py", GOOD, None) == []
    assert faults("samples/a.wav", GOOD, None) == [Fault("samples/a.wav", "missing", THERE, HERE)]


def test_what_nobody_wrote_down_is_extra_unless_the_cluster_has_it():
    assert list(judge({}, {"x": GOOD}, None)) == [Fault("x", "extra", HERE)]
    assert list(judge({}, {"x": GOOD}, {})) == [Fault("x", "extra", HERE)]
    assert list(judge({}, {"x": GOOD}, {"x": GOOD})) == []
