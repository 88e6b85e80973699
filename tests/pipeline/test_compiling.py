"""``trainer.compile`` with the real compiler, on networks small enough for it to take seconds. That every system's parts can be
compiled is in tests/models/test_contract.py."""

import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from pipeline import checkpoint, compiling
from pipeline.control import Stop
from pipeline.errors import UserError
from pipeline.journal import read_journals
from tests.pipeline.ranks import run_ranks
from tests.pipeline.shard_factory import write_dataset
from tests.pipeline.stack import STEPS, config_of, train
from tests.pipeline.test_trainer import Line, final, lab, losses  # noqa: F401

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here (apt install g++)")


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(15, 15)

    def forward(self, x):
        return nn.functional.gelu(nn.functional.dropout(self.layer(x), 0.2, self.training))


class Bent(Line):
    """A line behind a layer that is compiled."""

    def __init__(self, config, data, poison=0, bad=None):
        super().__init__(config, data, poison, bad)
        self.body = Body()

    def compiled(self):
        yield self.body

    def _error(self, x, target):
        return super()._error(self.body(x.flatten(1)), target)


@pytest.fixture(autouse=True)
def from_nothing(tmp_path_factory, monkeypatch):
    """Nothing compiled before, neither in this process nor on this disk."""
    monkeypatch.setenv(compiling.CACHE, str(tmp_path_factory.getbasetemp() / "compiled"))
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def test_a_compiled_run_in_pieces_is_the_compiled_run_in_one_and_learns_the_same(lab):  # noqa: F811
    eager, trainer = lab("eager", kind=Bent)
    trainer.fit()
    whole, trainer = lab("whole", kind=Bent, compile=True)
    assert trainer.fit() is Stop.NO
    assert counters["stats"]["unique_graphs"] == 1, "compiled for training steps alone, and once"
    for steps in (5, 20):
        pieces, trainer = lab("pieces", kind=Bent, compile=True, max_steps=steps)
        trainer.fit()
    assert losses(pieces) == losses(whole) and final(pieces) == final(whole)
    assert losses(whole) == pytest.approx(losses(eager), rel=1e-3), "dropout draws alike"
    names = [set(checkpoint.load(r.checkpoints / checkpoint.folder_name(20)).parts["model"]) for r in (eager, whole)]
    assert names[0] == names[1]
    (first,) = [event for event in whole.history() if event["event"] == "first_step"]
    assert first["compile_s"] > 0 and first["flops"] > 0
    assert any("time/mfu" in point.metrics for point in read_journals(whole.metrics))


@pytest.mark.parametrize("stage", [None, 2])
def test_two_ranks_compile(tmp_path, stage):
    write_dataset(tmp_path / "data", [23, 14])
    write_dataset(tmp_path / "data", [9], split="valid")
    sharded = {"strategy": "deepspeed", "deepspeed": {"stage": stage}} if stage else {}
    found = {}
    for name, more in (("plain", {}), ("compiled", {"compile": True})):
        path = tmp_path / name / "00000000"
        codes, ends = run_ranks(2, tmp_path / "stores", train, str(tmp_path / "data"), str(path), {**sharded, **more})
        assert codes == [0, 0] and ends == ["NO", "NO"]
        found[name] = {
            p.step: p.metrics["train/loss"] for p in read_journals(path / "metrics") if "train/loss" in p.metrics
        }
    assert len(found["plain"]) == STEPS and found["compiled"] == pytest.approx(found["plain"], rel=1e-3)


def test_a_module_without_parts_a_machine_without_compiler_and_shared_weights_are_refused(lab, monkeypatch):  # noqa: F811
    with pytest.raises(UserError, match=r"nothing of line can be compiled .* set trainer.compile=false"):
        lab(compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"there is no no-such-compiler here; load one .*module load gcc"):
        lab(kind=Bent, compile=True)
    with pytest.raises(UserError, match=r"ZeRO's stage 3 .* set trainer.deepspeed.stage=2"):
        config_of(compile=True, strategy="deepspeed", deepspeed={"stage": 3})


def test_compiling_makes_no_other_run_of_a_run():
    from pipeline.config import identity_of

    assert identity_of(config_of(compile=True), "data") == identity_of(config_of(), "data")


def test_compiled_code_is_kept_where_only_this_user_can_write(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    usual = compiling.private_folder()
    assert usual == compiling.private_folder() and usual.stat().st_mode & 0o777 == 0o700
    usual.chmod(0o777)
    other = compiling.private_folder()
    assert other != usual and other.stat().st_mode & 0o777 == 0o700
    usual.rmdir()
    usual.symlink_to(tmp_path)  # somebody else's folder under our name
    assert compiling.private_folder() not in (usual, tmp_path)
