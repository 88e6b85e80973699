"""The loop, in this process, on the smallest thing that can be trained."""

import math
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import checkpoint
from pipeline.attempt import Attempt
from pipeline.config import ModelSection, Schedule, parse_config
from pipeline.control import Stop, StopFlag
from pipeline.deadline import Deadline
from pipeline.distributed import make_fabric
from pipeline.ema import Ema, warmed_up
from pipeline.errors import RunFailed
from pipeline.files import read_lines
from pipeline.health import RolledBack
from pipeline.journal import read_journals
from pipeline.rng import KeyedRandom, seed_step
from pipeline.runs import RunFolder
from pipeline.saving import HostMemory
from pipeline.train_module import TrainModule, schedule_factor
from pipeline.trainer import Trainer
from pipeline.world import World
from tests.conftest import ROOT
from tests.pipeline.shard_factory import write_dataset


class Line(TrainModule):
    """y = 2 x with keyed noise and dropout, so that every source of randomness takes part."""

    def __init__(self, config, data, poison: int = 0, bad: dict[int, float] | None = None):
        super().__init__(config, data)
        self.layer, self.poison = nn.Linear(15, 1), poison
        self.bad, self.seen = bad or {}, []  # positions whose loss is multiplied by something; all positions trained on

    def _error(self, x, target):
        return (self.layer(x.flatten(1)).squeeze(1) - target).square().mean()

    def training_step(self, batch, step):
        noise = self.random.normal("line", batch["position"], (15,))
        x = nn.functional.dropout(batch["mel"].flatten(1) + 0.01 * noise, 0.1)
        loss = self._error(x, batch["id"].float() / 50)
        self.seen += batch["position"].tolist()
        for position in batch["position"].tolist():
            loss = loss * self.bad.get(position, 1.0)
        return {"loss": loss * math.nan if step == self.poison else loss}

    def validation_step(self, batch, step):
        return {"loss": self._error(batch["mel"], batch["id"].float() / 50)}


class LineWithoutDropout(Line):
    """Dropout is the one draw without a key: pieces of a batch draw it otherwise than the whole."""

    def training_step(self, batch, step):
        return {"loss": self._error(batch["mel"], batch["id"].float() / 50)}


class ChannelsLast(Line):
    """With weights that lie otherwise in memory than in a file."""

    def __init__(self, config, data, poison=0, bad=None):
        super().__init__(config, data, poison, bad)
        self.convolution = nn.Conv2d(3, 3, (1, 3), padding=(0, 1)).to(memory_format=torch.channels_last)

    def _error(self, x, target):
        return super()._error(self.convolution(x.reshape(len(x), 3, 1, 5)), target)


@pytest.fixture
def lab(tmp_path):
    manifest = write_dataset(tmp_path / "data", [23, 14])
    manifest = write_dataset(tmp_path / "data", [7], split="valid")

    def train(name: str = "a", poison: int = 0, kind: type[Line] = Line, deadline=None, bad=None, **trainer):
        tree = {
            "model": {"system": "line"},
            "data": {"recipe": "toy", "batch_size": 4},
            "optimizer": {"lr": 0.01, "schedule": {"name": "cosine", "warmup_steps": 3, "decay_steps": 40}},
            "trainer": {
                "max_steps": 20,
                "log_every": 1,
                "save_every": 5,
                "validate_every": 10,
                "ema": 0.9,
                "grad_clip": 1.0,
                **trainer,
            },
        }
        config = parse_config(tree, ModelSection, "test")
        run = RunFolder(tmp_path / name / "00000000")
        run.create()
        torch.manual_seed(0)
        module, world, stop = kind(config, {}, poison, bad), World(), StopFlag()
        fabric = make_fabric(config.trainer, world)
        trainer_ = Trainer(
            run, config, module, manifest, fabric, world, Attempt(run.claim_attempt(), stop, deadline or Deadline(None))
        )
        trainer_.stop_flag = stop
        return run, trainer_

    return train


def losses(run: RunFolder) -> dict[int, float]:
    return {p.step: p.metrics["train/loss"] for p in read_journals(run.metrics) if "train/loss" in p.metrics}


def final(run: RunFolder, step: int = 20) -> bytes:
    return (run.checkpoints / checkpoint.folder_name(step) / checkpoint.MANIFEST).read_bytes()


@pytest.mark.parametrize("kind", [Line, ChannelsLast])
def test_a_run_in_pieces_is_the_run_in_one(lab, kind):
    whole, trainer = lab("whole", kind=kind)
    assert trainer.fit() is Stop.NO
    for steps in (5, 10, 20):
        pieces, trainer = lab("pieces", kind=kind, max_steps=steps)
        trainer.fit()
    assert losses(pieces) == losses(whole) and len(losses(whole)) == 20
    assert final(pieces) == final(whole)


def test_training_goes_on_while_a_checkpoint_is_written(lab, monkeypatch):
    run, trainer = lab(max_steps=9)
    save, seen = checkpoint.save, []

    def slow(folder, made):  # the disk is done when three more steps are trained
        while made.step == 5 and trainer.at.step < 8:
            time.sleep(0.001)
        seen.append((made.step, trainer.at.step))
        return save(folder, made)

    fill = HostMemory.fill
    monkeypatch.setattr(
        checkpoint, "save", slow
    )  # and the copy begins late, when the next step would long have moved the weights
    monkeypatch.setattr(HostMemory, "fill", lambda *args: (time.sleep(0.2), fill(*args))[1])
    assert trainer.fit() is Stop.NO
    assert [step for step, _ in seen] == [5, 9] and seen[0][1] >= 8
    undisturbed, trainer = lab("undisturbed", max_steps=9)
    monkeypatch.undo()
    trainer.fit()
    assert final(run, 5) == final(undisturbed, 5) and final(run, 9) == final(undisturbed, 9)
    told = [row["metrics"] for row in read_lines(run.journal_file(1))[0] if "time/save_s" in row.get("metrics", {})]
    assert len(told) == 2 and all(row["time/save_write_s"] > 0.2 for row in told)


def test_averages_may_begin_on_the_way(lab):
    run, trainer = lab(ema=None, max_steps=5)
    trainer.fit()
    run, trainer = lab(ema=0.9, max_steps=6)
    trainer.fit()
    averages = checkpoint.load(run.checkpoints / checkpoint.folder_name(6)).parts["ema"]
    before = checkpoint.load(run.checkpoints / checkpoint.folder_name(5)).parts["model"]
    after = checkpoint.load(run.checkpoints / checkpoint.folder_name(6)).parts["model"]
    expected = torch.lerp(before["layer.weight"], after["layer.weight"], 1 - warmed_up(0.9, 6))
    assert torch.allclose(averages["layer.weight"], expected)


def test_accumulating_micro_batches_is_the_whole_batch(lab):
    whole, trainer = lab("whole", kind=LineWithoutDropout)
    trainer.fit()
    for size in (1, 2, 3):  # 3 leaves an uneven rest
        small, trainer = lab(f"by-{size}", kind=LineWithoutDropout, micro_batch=size)
        trainer.fit()
        assert losses(small) == pytest.approx(losses(whole), rel=1e-4)


def test_validation_is_the_mean_over_every_sample_with_the_averaged_weights(lab):
    run, trainer = lab()
    trainer.fit()
    (value,) = [
        p.metrics["valid/loss"] for p in read_journals(run.metrics) if p.step == 20 and "valid/loss" in p.metrics
    ]
    errors = []
    with trainer.state.evaluation():
        for batch in trainer._evaluation(0):
            output = trainer.module.layer(batch["mel"].flatten(1)).squeeze(1)
            errors += (output - batch["id"].float() / 50).square().tolist()
    assert len(errors) == 7, "7 samples in batches of 4: the last is half full"
    assert value == pytest.approx(np.mean(errors), rel=1e-5)
    assert trainer.at.validation_loss == value


def test_a_loss_that_is_not_finite_ends_the_run_in_a_sentence_and_saves_nothing_of_it(lab):
    run, trainer = lab(poison=7, rollback={"times": 0})
    with pytest.raises(RunFailed, match=r"the loss is nan at step 7; lower optimizer\.lr"):
        trainer.fit()
    assert checkpoint.steps(run.checkpoints) == [5]
    assert run.last_end()["reason"] == "failed" and "nan" in run.last_end()["message"]


def test_bad_data_is_left_behind_by_a_rollback_and_never_seen_again(lab):
    """Position 33 is in step 9, of positions 32..35; the last checkpoint is of step 5, which ended before position 20."""
    whole, trainer = lab("whole")
    trainer.fit()
    run, trainer = lab("a", bad={33: math.nan})
    with pytest.raises(RolledBack, match="the loss is nan"):
        trainer.fit()
    (event,) = [e for e in run.history() if e["event"] == "rolled_back"]
    assert event["skip"] == [32, 36] and event["step"] == 9 and checkpoint.steps(run.checkpoints) == [5]
    run, trainer = lab("a", bad={33: math.nan}, max_steps=12)  # as after a kill: the history alone tells
    assert trainer.fit() is Stop.NO
    run, trainer = lab("a", bad={33: math.nan})
    assert (
        trainer.fit() is Stop.NO and 36 not in trainer.module.seen and not {32, 33, 34, 35} & set(trainer.module.seen)
    )
    assert checkpoint.load(run.checkpoints / checkpoint.folder_name(20)).state["data"]["skip"] == [[32, 36]]
    mine, theirs = losses(run), losses(whole)
    assert [s for s in range(1, 21) if mine[s] == theirs[s]] == list(range(1, 9)), "exact up to what was given up"


def test_a_rollback_before_the_first_checkpoint_begins_anew(lab):
    run, trainer = lab("a", bad={1: math.inf}, log_every=10, save_every=5)
    with pytest.raises(RolledBack):
        trainer.fit()
    assert checkpoint.steps(run.checkpoints) == [], "looked at before it was saved, though nothing was due to be logged"
    run, trainer = lab("a", bad={1: math.inf})
    assert trainer.fit() is Stop.NO and trainer.module.seen[0] == 20


def test_after_two_rollbacks_it_stops(lab):
    for _ in range(2):
        run, trainer = lab(poison=7)
        with pytest.raises(RolledBack):
            trainer.fit()
    run, trainer = lab(poison=7)
    with pytest.raises(RunFailed, match=r"the loss is nan at step 7 again, after 2 rollback\(s\)"):
        trainer.fit()
    assert run.last_end()["reason"] == "failed"


def test_a_leap_of_the_loss_is_rolled_back_where_that_is_asked_for(lab):
    _, trainer = lab("quiet", bad={161: 1e4}, max_steps=45)
    assert trainer.fit() is Stop.NO, "by default a finite loss is taken as it is"
    run, trainer = lab("a", bad={161: 1e4}, max_steps=45, rollback={"spike": 50.0})
    with pytest.raises(RolledBack, match="the loss leapt to"):
        trainer.fit()
    run, trainer = lab("a", bad={161: 1e4}, max_steps=45, rollback={"spike": 50.0})
    assert len(trainer.at.losses) == 0
    assert trainer.fit() is Stop.NO and len(trainer.at.losses) == 45
    (event,) = [e for e in run.history() if e["event"] == "rolled_back"]
    assert event["skip"] == [160, 164] and 161 not in trainer.module.seen


def test_a_flag_stops_at_the_step_saved(lab):
    run, trainer = lab()
    trainer.stop_flag.raise_to(Stop.WARNED)
    assert trainer.fit() is Stop.WARNED
    assert checkpoint.steps(run.checkpoints) == [1] and run.last_end() is not None


def test_a_disk_that_is_full_while_saving_warns_and_the_older_checkpoint_stays(lab):
    """A limit on file size is a write that fails for real; training goes on."""
    run, trainer = lab(max_steps=5)
    trainer.fit()
    run, trainer = lab(max_steps=10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = checkpoint.save

    def save(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        try:
            return real(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    checkpoint.save = save
    try:
        with pytest.raises(RunFailed, match="last checkpoint could not be written"):
            trainer.fit()
    finally:
        checkpoint.save = real
    assert checkpoint.steps(run.checkpoints) == [5]
    assert run.last_end()["reason"] == "failed", "a run whose last weights are not on disk is not complete"
    (event,) = [e for e in run.history() if e["event"] == "save_failed"]
    assert event["step"] == 10 and "older ones are intact" in event["message"]
    assert not [p for p in run.checkpoints.iterdir() if p.name.startswith(checkpoint.TEMPORARY)]
    again, trainer = lab(max_steps=12)
    trainer.fit()
    assert checkpoint.steps(again.checkpoints) == [10, 12], "resumed from 5, made 10 again"


def test_schedule_by_hand():
    cosine = Schedule(name="cosine", warmup_steps=10, decay_steps=110, final_ratio=0.1)
    assert schedule_factor(cosine, 5) == 0.5
    assert schedule_factor(cosine, 10) == 1.0
    assert schedule_factor(cosine, 60) == pytest.approx(0.55)
    assert schedule_factor(cosine, 110) == pytest.approx(0.1)
    assert schedule_factor(cosine, 10**6) == pytest.approx(0.1)
    assert schedule_factor(Schedule(name="linear", decay_steps=100), 25) == 0.75
    assert schedule_factor(Schedule(), 1) == 1.0


def test_ema_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    ema = Ema(dict(layer.named_parameters()), 0.5)
    nn.init.constant_(layer.weight, 1.0)
    ema.update(1000)
    with ema.applied():
        assert layer.weight.item() == 0.5
    assert layer.weight.item() == 1.0
    with pytest.raises(KeyError, match="another architecture"):
        ema.load_state_dict({"other": torch.zeros(1)})


def test_keyed_draws_depend_on_position_and_stream_only():
    random = KeyedRandom(3)
    both = random.normal("a", torch.tensor([5, 9]), (4,))
    assert torch.equal(both[1:], random.normal("a", torch.tensor([9]), (4,)))
    assert not torch.equal(both[:1], random.normal("b", torch.tensor([5]), (4,)))
    assert not torch.equal(both[:1], KeyedRandom(4).normal("a", torch.tensor([5]), (4,)))
    wide = random.uniform("a", torch.arange(4000), (10,))
    assert wide.mean().item() == pytest.approx(0.5, abs=0.01) and wide.min() >= 0 and wide.max() < 1
    seed_step(1, 2, 0)
    first = torch.rand(3)
    seed_step(1, 2, 0)
    assert torch.equal(first, torch.rand(3))
    seed_step(1, 2, 1)
    assert not torch.equal(first, torch.rand(3))


def test_three_ranks_in_two_attempts_end_with_the_bits_of_one(tmp_path):
    """From three ranks on the order of a sum matters, and DDP chooses its buckets anew in every attempt."""
    write_dataset(tmp_path / "data", [40])
    runs = [RunFolder(tmp_path / name) for name in ("whole", "pieces", "harmed")]
    for run in runs:
        run.create()
    words = [sys.executable, "-m", "tests.pipeline.three_ranks", str(tmp_path)]
    ranks = [subprocess.Popen([*words, str(rank)], cwd=ROOT) for rank in range(3)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0, 0]
    assert final(runs[0], 8) == final(runs[1], 8)
    harmed = checkpoint.load(runs[2].checkpoints / checkpoint.folder_name(8))
    assert harmed.state["data"]["skip"] == [[0, 72]], "no step before the last was looked at"


def test_the_deadline_stops_it_in_time_for_a_slow_save(lab):
    deadline = Deadline(time.time() + 600, slowest_save=294.9)  # the lead is 10 s and twice that
    run, trainer = lab("a", max_steps=3000, save_every=1000, deadline=deadline)
    assert trainer.fit() is Stop.WARNED
    end = run.last_end()
    assert end["reason"] == "warned" and run.steps()[-1] == end["step"]
    assert run.last_took()["slowest_save"] == 294.9, "the next attempt knows it from the start"
