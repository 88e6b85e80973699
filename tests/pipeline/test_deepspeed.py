"""ZeRO 1, 2 and 3 on real ranks: the same function as data parallelism, checkpoints that survive and that anything can go on from."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint
from pipeline.journal import read_journals
from pipeline.runs import RunFolder
from tests.pipeline.ranks import run_ranks
from tests.pipeline.shard_factory import write_dataset
from tests.pipeline.stack import STEPS, die_while_saving, train

STAGES = (1, 2, 3)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is for Linux only")


class Lab:
    """Runs of the stack on one small dataset; those that nobody changes are trained once."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, str(root / "data")
        write_dataset(root / "data", [23, 14])
        write_dataset(root / "data", [9], split="valid")  # in batches of 8: one rank has none of the last
        self.kept: dict[str, RunFolder] = {}

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.root / name / "00000000")

    def go(
        self, name: str, ranks: int = 2, stage: int | None = None, work: Any = train, words: tuple[Any, ...] = (), **section: Any
    ) -> list[Any]:  # fmt: skip
        """One attempt; stage None is data parallelism. Exit codes."""
        if stage:
            section |= {"strategy": "deepspeed", "deepspeed": {"stage": stage}}
        codes, _ = run_ranks(ranks, self.root / "stores", work, self.data, str(self.run(name).path), section, *words)
        return codes

    def whole(self, stage: int | None) -> RunFolder:
        """An undisturbed run on two ranks."""
        name = f"whole-{stage or 'ddp'}"
        if name not in self.kept:
            assert self.go(name, stage=stage, sample_every=6) == [0, 0]
            self.kept[name] = self.run(name)
        return self.kept[name]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("zero"))


def values(run: RunFolder, name: str) -> dict[int, float]:
    return {p.step: p.metrics[name] for p in read_journals(run.metrics) if name in p.metrics}


def hashes(run: RunFolder, step: int = STEPS) -> dict[str, str]:
    manifest = checkpoint.read_json(run.checkpoints / checkpoint.folder_name(step) / checkpoint.MANIFEST)
    return {name: entry["xxh3_128"] for name, entry in manifest["files"].items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_what_data_parallelism_computes(lab, stage):
    plain, sharded = lab.whole(None), lab.whole(stage)
    for name in ("train/loss", "train/grad_norm", "train/learning_rate", "valid/loss"):
        assert values(sharded, name) == pytest.approx(values(plain, name), rel=1e-5), name
    shown = [float((run.samples / "step_000000012" / "loss.txt").read_text()) for run in (plain, sharded)]
    assert shown[1] == pytest.approx(shown[0], rel=1e-5), "samples are made with the averaged weights"


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_what_data_parallelism_would_write(lab, stage):
    """Whole tensors under the same names, in one file a rank."""
    plain, sharded = (
        checkpoint.load(lab.whole(s).checkpoints / checkpoint.folder_name(STEPS)).parts for s in (None, stage)
    )
    assert sharded.names() == plain.names() and set(sharded) == set(plain)
    for name in sorted(plain.names()):
        torch.testing.assert_close(sharded.tensor(name), plain.tensor(name), rtol=1e-3, atol=1e-5, msg=name)
    assert sharded["optimizer.main"]["param_groups"] == plain["optimizer.main"]["param_groups"]
    folder = lab.whole(stage).checkpoints / checkpoint.folder_name(STEPS)
    files = {p.name: p.stat().st_size for p in folder.iterdir()}
    assert set(files) == {
        "MANIFEST.json", "state.json", "shard-00001-of-00002.safetensors", "shard-00002-of-00002.safetensors",
    }  # fmt: skip
    sizes = [size for name, size in files.items() if name.startswith("shard")]
    assert max(sizes) < 1.3 * min(sizes), "each rank writes its share"


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(lab, stage):
    whole, again = lab.whole(stage), lab.run(f"again-{stage}")
    shutil.copytree(whole.path, again.path)
    for step in (8, STEPS):
        shutil.rmtree(again.checkpoints / checkpoint.folder_name(step))
    assert lab.go(again.path.parent.name, stage=stage) == [0, 0]
    assert [e["after_step"] for e in again.history() if e["event"] == "attempt"] == [0, 4]
    assert values(again, "train/loss") == values(whole, "train/loss")
    assert hashes(again) == hashes(whole)


@pytest.mark.parametrize("stage", [None, 3])
def test_activations_computed_again_change_no_bit_on_several_ranks(lab, stage):
    """Also where a part's weights are there only while it computes, and are let go of in between."""
    name = f"sparing-{stage}"
    assert lab.go(name, stage=stage, activation_checkpointing=True) == [0, 0]
    assert hashes(lab.run(name)) == hashes(lab.whole(stage))


def test_another_number_of_ranks_another_stage_and_plain_data_parallelism_go_on(lab):
    for steps, ranks, stage in ((3, 2, 3), (6, 1, 3), (9, 2, 1), (STEPS, 2, None)):
        assert lab.go("changing", ranks, stage, max_steps=steps) == [0] * ranks
    losses = values(lab.run("changing"), "train/loss")
    assert losses == pytest.approx(values(lab.whole(None), "train/loss"), rel=1e-3)
    assert len(losses) == STEPS


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_are_the_whole_batch_and_a_gradient_that_is_not_finite_ends_the_run_on_all_ranks(lab, stage):
    """Two uneven pieces of each rank's four samples; no weight is moved by the bad step."""
    name = f"poisoned-{stage}"
    assert lab.go(name, stage=stage, work=poisoned, micro_batch=3, rollback={"times": 0}) == [1, 1]
    run = lab.run(name)
    whole = {step: loss for step, loss in values(lab.whole(stage), "train/loss").items() if step < 6}
    assert values(run, "train/loss") == pytest.approx(whole, rel=1e-4)
    assert "the gradient is not finite at step 6; lower optimizer.lr" in run.last_end()["message"]
    assert checkpoint.steps(run.checkpoints) == [4]


def poisoned(world, data, path, section):
    return train(world, data, path, section, poison=6)


def test_bfloat16_means_autocast_here_too(lab):
    for name, stage, ranks in (("plain-bf16", None, 1), ("zero-bf16", 3, 2)):
        assert lab.go(name, ranks, stage, precision="bf16", max_steps=4) == [0] * ranks
        assert set(values(lab.run(name), "train/autocast").values()) == {1.0}, name
        assert values(lab.run(name), "train/loss")[4] == pytest.approx(
            values(lab.whole(None), "train/loss")[4], rel=1e-2
        )
    weights = checkpoint.load(lab.run("zero-bf16").checkpoints / checkpoint.folder_name(4)).parts["model"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def check_killed_while_saving(lab, name, stage, rank, moment, left):
    codes = lab.go(name, stage=stage, work=die_while_saving, words=(rank, moment))
    assert -9 in codes, codes
    run = lab.run(name)
    assert checkpoint.steps(run.checkpoints) == left
    assert lab.go(name, stage=stage) == [0, 0]
    assert hashes(run) == hashes(lab.whole(stage)) and not list(run.checkpoints.glob(f"{checkpoint.TEMPORARY}*"))


def test_killed_while_saving_goes_on_from_the_one_before_and_ends_with_the_same_bits(lab):
    check_killed_while_saving(lab, "killed", 3, 1, "write_tensors", [4])


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("rank", "moment", "left"),
    [(0, "write_tensors", [4]), (1, "write_tensors", [4]), (0, "_own_share", [4]), (1, "_to_row", [4]), (0, "commit", [4, 8])],
)  # fmt: skip
def test_killed_at_any_moment_of_a_save_ends_with_the_same_bits(lab, stage, rank, moment, left):
    check_killed_while_saving(lab, f"killed-{stage}-{rank}-{moment}", stage, rank, moment, left)


def test_damage_in_one_shard_is_named_and_all_ranks_go_on_from_the_one_before(lab):
    shutil.copytree(lab.whole(2).path, lab.run("damaged").path)
    run = lab.run("damaged")
    shard = run.checkpoints / checkpoint.folder_name(STEPS) / "shard-00002-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(bytes(data))
    before = hashes(lab.whole(2))
    assert lab.go("damaged", stage=2) == [0, 0]
    (rejected,) = [e["message"] for e in run.history() if e["event"] == "checkpoint_rejected"]
    assert "shard-00002-of-00002.safetensors is not the bytes that were written" in rejected
    assert [e["after_step"] for e in run.history() if e["event"] == "attempt"] == [0, 8]
    assert hashes(run) == before


def test_what_we_know_of_deepspeed_inside_is_still_so():
    """``pipeline.zero`` uses these names beside DeepSpeed's public ones; a new version that lacks one fails here first."""
    from deepspeed.ops import __compatible_ops__
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert "deepspeed_shm_comm" in __compatible_ops__
    assert callable(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)
    assert callable(DeepSpeedZeroOptimizer_Stage3._set_fp32_optimizer_param_groups)
    assert callable(DeepSpeedZeroOptimizer_Stage3._clear_fp32_optimizer_param_groups)
