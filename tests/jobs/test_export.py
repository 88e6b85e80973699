"""One plain file of a run's weights, whatever trained it; and a ZeRO run as a user launches, kills, finishes and exports it."""

import os
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from jobs import export
from jobs.trained import load_trained
from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.errors import RunFailed, UserError
from pipeline.runs import RunFolder
from tests.conftest import command
from tests.jobs.survival import Lab, wait_for
from tests.models.helpers import build, load


@pytest.fixture
def run(tmp_path):
    """A run folder with one checkpoint, whose averages are the weights plus one."""
    config = load("dismix_demo", "model.simple.width=16", "model.simple.gru=8", "trainer.ema=0.9")
    run = RunFolder(tmp_path / "runs" / "dismix_demo" / "0123abcd")
    run.create()
    run.config_file.write_text(config.to_yaml())
    run.record("created")
    weights = build(config).state_dict()
    averages = {name: tensor + 1 for name, tensor in weights.items()}
    checkpoint.save(run.checkpoints, Checkpoint(5, {"model": weights, "ema": averages}, {}))
    return run


def test_the_averages_or_the_raw_weights_load_into_the_matching_module(run, tmp_path):
    runs = str(run.path.parent.parent)
    for words in ([], ["--raw"]):
        out = tmp_path / "weights.safetensors"
        assert export.main(["dismix_demo", "--runs", runs, "--out", str(out), *words]) == 0
        module = build(load("dismix_demo", "model.simple.width=16", "model.simple.gru=8"), seed=1)
        module.load_state_dict(load_file(out))
        expected = checkpoint.load(run.checkpoints / "step_000000005").parts["model" if words else "ema"]
        assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
        with safe_open(out, framework="pt") as file:
            kind = "raw" if words else "averaged"
            assert file.metadata() == {"run": run.name, "system": "dismix", "step": "5", "weights": kind}


@pytest.mark.parametrize(
    ("name", "out", "words"),
    [
        ("dismix_demo", "weights.pt", "ends in .safetensors"),
        ("dismix_demo", "nowhere/weights.safetensors", "there is no folder"),
        ("dismix_demo", ".", "ends in .safetensors"),
        ("dismix_dmo", "weights.safetensors", "Did you mean"),
    ],
)
def test_a_mistake_is_one_sentence(run, tmp_path, name, out, words):
    with pytest.raises(UserError, match=words) as caught:
        export.main([name, "--runs", str(run.path.parent.parent), "--out", str(tmp_path / out)])
    assert "\n" not in str(caught.value)


def test_a_run_without_a_checkpoint_is_said(run, tmp_path):
    (run.checkpoints / "step_000000005").rename(run.path / "away")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export.main(["dismix_demo", "--runs", str(run.path.parent.parent), "--out", str(tmp_path / "a.safetensors")])


def test_a_write_that_fails_leaves_the_older_file(run, tmp_path):
    import resource

    out, before = tmp_path / "weights.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    export.export(run, out, raw=False)
    whole = out.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(RunFailed, match="could not be written"):
            export.export(run, out, raw=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_bytes() == whole and [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_zero_killed_finished_by_one_process_and_exported(demo_data, tmp_path):
    """The launcher and all ranks of a ZeRO-3 run die; plain training on one process goes on from its checkpoint."""
    lab = Lab(demo_data, tmp_path)
    launcher = lab.start(2, "trainer.save_every=3", "trainer.strategy=deepspeed", "trainer.deepspeed.stage=3")
    assert wait_for(lambda: any(tmp_path.glob("*/*/checkpoints/step_*")), launcher), launcher.communicate()[0]
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.communicate(timeout=60)
    step = lab.run.steps()[-1]
    output = lab.finish(1, f"trainer.max_steps={step + 3}")
    assert f"resuming after step {step} " in output, output
    out = tmp_path / "weights.safetensors"
    done = command("jobs/export.py", lab.run.name, "--runs", tmp_path, "--out", out)
    assert done.returncode == 0 and done.stdout.splitlines() == [str(out)], done.stderr
    expected = load_trained(lab.run).module.state_dict()
    written = load_file(out)
    assert written.keys() == expected.keys() and all(torch.equal(written[name], expected[name]) for name in expected)
