"""What a step computes, its share of the peak, and torch's profiler over a few steps; on the smallest thing that can be trained."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

import tests.pipeline.test_trainer as trainer_tests
from pipeline import arithmetic, reporter
from pipeline.arithmetic import STATED, Count, peak_of
from pipeline.config import BUDGET_KEYS, ModelSection, identity_of, parse_config
from pipeline.control import Stop
from pipeline.errors import RunFailed, UserError
from pipeline.journal import read_journals
from tests.pipeline.stack import config_of
from tests.pipeline.test_trouble import SlowLine

lab = trainer_tests.lab


def test_products_convolutions_and_attention_are_counted_forward_and_backward():
    weight = torch.randn(16, 32, requires_grad=True)
    with Count() as count:
        (torch.randn(8, 16) @ weight).sum().backward()
    assert count.flops == 2 * (2 * 8 * 16 * 32), "the forward, and the weight's gradient"
    assert count.operations == 5, (
        "the draw, two products, the sum, and the ones that its gradient begins with; no views"
    )
    with Count() as count, torch.no_grad():
        torch.nn.functional.conv1d(torch.randn(2, 3, 10), torch.randn(5, 3, 4))
    assert count.flops == 2 * 2 * 5 * 7 * 3 * 4


def test_every_run_journals_its_arithmetic_and_says_what_peak_that_is_held_against(lab):
    run, trainer = lab(max_steps=6)
    trainer.fit()
    first = next(e for e in run.history() if e["event"] == "first_step")
    assert first["flops"] == 2 * (2 * 4 * 15), (
        "of the first step: a linear layer and its weight's gradient, four samples"
    )
    assert first["peak_flops"] > 1e8 and first["peak_from"] == "measured: 768x768 products in float32"
    for point in (p for p in read_journals(run.metrics) if "time/steps_per_s" in p.metrics):
        rate = point.metrics["time/steps_per_s"]
        assert point.metrics["time/tflops"] == pytest.approx(240e-12 * rate)
        assert point.metrics["time/mfu"] == pytest.approx(240 * rate / first["peak_flops"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"), ("NVIDIA H200", "H200"),
    ],
)  # fmt: skip
def test_known_gpus_have_the_peak_that_is_stated_for_them(monkeypatch, name, word):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    for precision in ("bf16", "tf32", "32"):
        assert peak_of(torch.device("cuda"), precision) == (STATED[word][precision], f"stated for {name}")


def test_a_peak_is_the_fastest_of_several_products(monkeypatch):
    ticks = iter([0.0, 5.0, 5.0, 7.0, 7.0, 8.0, 8.0, 12.0])
    monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: next(ticks))
    assert peak_of(torch.device("cpu"), "32")[0] == 2 * 768**3


# -- a trace ------------------------------------------------------------------------------------------------------


def ranges(run) -> list[tuple[str, dict[str, int]]]:
    """By trace, how often each range of ours is in it."""
    found = []
    for path in sorted(run.profile.iterdir()):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        names = [e["name"] for e in events if e.get("cat") == "user_annotation"]
        found.append((path.name, {name: names.count(name) for name in dict.fromkeys(names)}))
    return found


def test_a_trace_of_the_steps_that_are_asked_for_opens_and_names_them(lab):
    run, trainer = lab(profile={"steps": 2, "skip": 3})
    assert trainer.fit() is Stop.NO
    ((name, found),) = ranges(run)
    assert name == "attempt_001_rank_0_step_4.pt.trace.json.gz"
    assert {key: found[key] for key in ("ProfilerStep#4", "ProfilerStep#5", "data", "optimize")} == {
        "ProfilerStep#4": 1, "ProfilerStep#5": 1, "data": 2, "optimize": 2,
    }  # fmt: skip
    assert not [key for key in found if key.startswith("ProfilerStep") and key[-1] not in "45"]
    _, quiet = lab("quiet")
    quiet.fit()
    assert trainer_tests.final(run) == trainer_tests.final(quiet.run), "it changes nothing of what is trained"
    assert not quiet.run.profile.exists()


def test_a_training_that_ends_before_its_trace_leaves_what_there_is_and_one_that_cannot_be_written_ends_nothing(
    lab, capsys
):
    run, trainer = lab(max_steps=6, profile={"steps": 20, "skip": 2})
    trainer.fit()
    assert "ProfilerStep#6" in ranges(run)[0][1]
    run, trainer = lab("b", profile={"steps": 1, "skip": 0})
    run.profile.write_text("in the way")
    assert trainer.fit() is Stop.NO
    assert "training goes on" in capsys.readouterr().err


def test_asking_for_a_trace_makes_no_other_run_and_too_long_a_one_is_refused():
    assert (
        identity_of(config_of(profile={"steps": 5}), "d") == identity_of(config_of(), "d") and "profile" in BUDGET_KEYS
    )
    tree = config_of().model_dump(mode="json")
    tree["trainer"]["profile"]["steps"] = 21
    with pytest.raises(
        UserError, match=r"'trainer.profile.steps': input should be less than or equal to 20 \(got 21\)"
    ):
        parse_config(tree, ModelSection, "toy")


# -- a loss that is seldom logged ---------------------------------------------------------------------------------


def test_a_loss_that_is_seldom_logged_is_looked_at_all_the_same(lab, monkeypatch):
    monkeypatch.setattr(reporter, "LOOK_SECONDS", 0.0)
    seldom = {"log_every": 10_000, "save_every": 10_000, "validate_every": 10_000}
    run, trainer = lab(kind=SlowLine, poison=5, max_steps=2000, rollback={"times": 0}, **seldom)
    with pytest.raises(RunFailed, match="the loss is nan"):
        trainer.fit()
    assert run.last_end()["step"] < 200
