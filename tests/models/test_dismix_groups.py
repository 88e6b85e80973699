"""Barlow Twins groups that span ranks: one process with 8 samples and two with 4 train the same."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Two processes for real: gloo, DDP, and the demo's module; each prints its loss terms and rank 0 some gradients.
WORKER = """
    import json, sys, torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from tests.models.helpers import build, load

    rank, world, group, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    module = build(load("dismix_demo", "data.batch_size=8", f"model.barlow_twins_group={group}"))
    module.forward = module.training_step
    model = DistributedDataParallel(module) if world > 1 else module
    share = 8 // world
    batch = {k: v[rank * share : (rank + 1) * share] for k, v in module.example_batch(8).items()}
    values = model(batch, 10**9)
    values["loss"].backward()
    gradients = {n: p.grad.flatten()[:3].tolist() for n, p in module.named_parameters()}
    values = {k: float(v.detach()) for k, v in values.items()}
    print(json.dumps([values, gradients]))
    if world > 1:
        dist.destroy_process_group()
"""


def run(world: int, group: int, folder: Path) -> list[list[dict]]:
    """[values, gradients] of every rank."""
    meeting = folder / f"meeting_{world}_{group}"
    words = [
        [sys.executable, "-c", textwrap.dedent(WORKER), str(rank), str(world), str(group), str(meeting)]
        for rank in range(world)
    ]
    workers = [subprocess.Popen(w, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for w in words]
    answers = []
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1]))
    return answers


@pytest.mark.parametrize("group", [8])
def test_a_group_over_two_ranks_equals_one_rank(group, tmp_path):
    ((alone, gradients),) = run(1, group, tmp_path)
    ranks = run(2, group, tmp_path)
    assert [r[0]["barlow_twins"] for r in ranks] == pytest.approx([alone["barlow_twins"]] * 2, rel=1e-4)
    for name, value in alone.items():
        assert sum(r[0][name] for r in ranks) / 2 == pytest.approx(value, rel=1e-4), name
    for name, gradient in gradients.items():
        assert ranks[0][1][name] == pytest.approx(gradient, rel=2e-3, abs=1e-3 * max(map(abs, gradient)) + 1e-5), name
