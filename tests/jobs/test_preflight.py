"""What is known wrong before anything is queued. (What sbatch and a full disk say, on a real SLURM: tests/jobs/test_slurm.py.)"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from jobs.clusters import Cluster
from jobs.configs import load_named
from jobs.describe import describe
from jobs.preflight import GIB, batch_problems, data_problems, memory_problems, quotas, space_problems, weights_problems
from pipeline.manifest import read_manifest
from tests.conftest import command

SIZE = {
    "weights": int(8 * GIB),
    "gradients": int(8 * GIB),
    "optimizer": int(16 * GIB),
    "ema": int(8 * GIB),
    "activations_per_sample": int(GIB),
}


def test_a_batch_that_does_not_divide_names_what_does():
    (sentence,) = batch_problems(load_named("dismix_demo", ["data.batch_size=60"]), 8)
    assert "(data.batch_size = 60) does not divide by 8" in sentence and "data.batch_size=64" in sentence


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damaged_data_is_found_and_its_command_named(demo_data, tmp_path, damage):
    folder = Path(shutil.copytree(demo_data / "cocochorales_simple_demo", tmp_path / "cocochorales_simple_demo"))
    config, manifest = load_named("dismix_demo"), read_manifest(folder)
    assert data_problems(manifest, config) == []
    for shard in manifest.shards:  # a few samples are looked at, not all: damage enough to be met
        tar = folder / f"{shard.name}.tar"
        if damage == "missing":
            tar.unlink()
        elif damage == "cut":
            os.truncate(tar, shard.tar_size - 512)
        else:
            tar.write_bytes(bytes(b ^ 1 for b in tar.read_bytes()))
    (sentence,) = data_problems(manifest, config)
    assert ("missing" if damage == "missing" else "damaged") in sentence
    assert "prepare.py cocochorales" in sentence and f"--out {tmp_path}" in sentence


@pytest.mark.parametrize(("micro", "expected"), [(36, ""), (64, "trainer.micro_batch=36")])
def test_a_step_that_does_not_fit_names_the_micro_batch_that_does(micro, expected):
    cluster = Cluster(scheduler="slurm", gpu_memory_gib=80)
    config = load_named("dismix_demo", ["data.batch_size=64", f"trainer.micro_batch={micro}"])
    found = memory_problems(config, cluster, 1, SIZE)
    assert expected in "".join(found) and bool(found) == bool(expected)
    assert all("or --set trainer.activation_checkpointing=true" in sentence for sentence in found)
    again = load_named("dismix_demo", ["trainer.activation_checkpointing=true", f"trainer.micro_batch={micro}"])
    assert "activation_checkpointing" not in "".join(memory_problems(again, cluster, 1, SIZE))


def test_a_model_that_never_fits_is_sent_to_deepspeed():
    (sentence,) = memory_problems(load_named("dismix_demo"), Cluster(scheduler="slurm", gpu_memory_gib=40), 1, SIZE)
    assert "--strategy deepspeed" in sentence
    assert memory_problems(load_named("dismix_demo"), Cluster(scheduler="slurm"), 1, SIZE) == [], (
        "nothing is known of the GPU"
    )


def test_room_for_what_is_kept_is_reckoned(tmp_path):
    config = load_named("dismix_demo", ["trainer.keep.last=2", "trainer.keep.best=1"])
    free = shutil.disk_usage(tmp_path).free
    assert space_problems(tmp_path / "runs", config, free // 8) == []
    (sentence,) = space_problems(tmp_path / "runs", config, free // 3)
    assert sentence.startswith("4 checkpoints of ") and "make room" in sentence and str(tmp_path) in sentence


def test_a_codecs_weights_must_be_there_whole(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURMPHONY_WEIGHTS", raising=False)
    config, cluster = (
        load_named("dismix_demo", ["data.codec=encodec"]),
        Cluster(scheduler="slurm", weights=str(tmp_path)),
    )
    (sentence,) = weights_problems(config, cluster)
    assert f"python data_prep/fetch_weights.py encodec --out {tmp_path}" in sentence
    (tmp_path / "encodec").mkdir()
    file = {"path": "a.th", "url": "", "size": 3, "sha256": "", "xxh3_128": "", "said_by": ""}
    (tmp_path / "encodec" / "manifest.json").write_text(json.dumps({"licence": "", "files": [file]}))
    (sentence,) = weights_problems(config, cluster)
    assert "a.th is missing or cut off" in sentence
    (tmp_path / "encodec" / "a.th").write_text("abc")
    assert weights_problems(config, cluster) == []
    assert weights_problems(load_named("dismix_demo", ["data.codec=meldct"]), Cluster(scheduler="slurm")) == [], (
        "it has none"
    )
    (sentence,) = weights_problems(load_named("dismix_demo", ["data.codec=mp3"]), cluster)
    assert "no codec 'mp3'" in sentence


LFS = """#!/bin/sh
# What Lustre's own lfs prints with -q; there is no Lustre to ask here.
echo "      {path} {used}{star}  {soft}  {hard}       -    {files}  900000 1000000       -"
"""


def test_lustres_quota_counts(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "lfs"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    program.write_text(LFS.format(path=tmp_path, used=900, star="", soft=0, hard=1024, files=999_900))
    program.chmod(0o755)
    assert quotas(tmp_path) == {"your quota": (124 * 1024, 100)}
    space, inodes = space_problems(tmp_path, load_named("dismix_demo"), 1 << 20)
    assert "your quota" in space and "only 100 more files" in inodes
    program.write_text(LFS.format(path=tmp_path, used=2000, star="*", soft=1000, hard=0, files=1))
    assert quotas(tmp_path)["your quota"][0] == 0, "over the soft limit, and no hard one"


def test_describe_tells_shapes_parameters_and_memory(demo_data):
    done = command("jobs/launch.py", "dismix_demo", "--describe", "--data", demo_data)
    assert done.returncode == 0, done.stderr
    assert "824,217" in done.stdout and "model.decoder.gru" in done.stdout and "GFLOP a sample" in done.stdout
    assert "save every" in done.stdout and re.search(r"in [\d,]{4,7} operations a step", done.stdout)
    kept, spared = map(float, re.search(r"([\d.]+) MB a sample \(float32\), ([\d.]+) with", done.stdout).groups())
    assert 0 < spared < 0.8 * kept
    wrong = command("jobs/launch.py", "--describe", "--resume", "dismix_demo")
    assert wrong.returncode == 2 and "--describe goes with a config's name" in wrong.stderr


def test_with_activation_checkpointing_one_part_at_a_time_is_in_memory():
    """Of equal parts all inputs are kept, and one part's own activations."""
    found = {depth: describe(load_named("cqtml_demo", [f"model.body.depth={depth}"]), None) for depth in (2, 4, 6)}
    block = (found[4].saved - found[2].saved) / 2
    ends = found[2].saved - 2 * block
    inputs = (found[6].spared - found[4].spared) / 2
    assert inputs == (found[4].spared - found[2].spared) / 2 and 0 < inputs < block / 5
    assert found[2].spared == pytest.approx(ends + block + 2 * inputs, rel=0.05)
    again = describe(load_named("cqtml_demo", ["trainer.activation_checkpointing=true"]), None)
    assert again.sizes["activations_per_sample"] == -(-found[2].spared // again.batch)
    assert found[2].sizes["activations_per_sample"] == -(-found[2].saved // again.batch)
