"""What a rank says and does when it fails beside others that wait for it: a launch of two, and farewells that never end, as NCCL's."""

import multiprocessing
import os
import time

import pytest

from jobs.train_job import TrainJob
from pipeline.errors import RunFailed, UserError
from pipeline.runs import RunFolder


def rank(number, path, error):
    """Rank 1 fails; rank 0 waits for it in a sum. Who takes leave of the others waits for ever."""
    import torch.distributed as dist

    from jobs import train_job

    os.environ |= {
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "SLURMPHONY_LAUNCH": "abc",
        "SLURMPHONY_PARENT": str(os.getppid()),
    }
    dist.destroy_process_group = lambda: time.sleep(3600)

    def train_on(run, world, attempt):
        if world.rank:
            raise error
        time.sleep(3600)

    train_job.train_on = train_on
    TrainJob(path)()


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("CUDA out of memory"), 1), (RunFailed("it failed"), 1), (UserError("that cannot be"), 2)],
    ids=["exception", "failure", "mistake"],
)
def test_what_a_rank_died_of_is_written_down_and_the_rank_ends_while_others_wait_for_it(tmp_path, error, code):
    run = RunFolder(tmp_path / "demo" / "0123abcd")
    run.create()
    run.record("created", config={})
    ranks = [multiprocessing.get_context("spawn").Process(target=rank, args=(n, str(run.path), error)) for n in (0, 1)]
    for one in ranks:
        one.start()
    try:
        ranks[1].join(120)
        assert ranks[1].exitcode == code, "it did not take leave, which has no end"
        assert ranks[0].is_alive()
    finally:
        for one in ranks:
            one.kill()
            one.join()
    (failed,) = [e for e in run.history() if e["event"] == "rank_failed"]
    assert (failed["rank"], failed["message"]) == (1, str(error))
    assert "Traceback" in (run.logs / "failed_rank1.txt").read_text()
