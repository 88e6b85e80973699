"""A run cannot be lost: whatever is killed whenever, the finished weights are those of an undisturbed run, bit for bit."""

import json
import signal
import time

import pytest

from pipeline.journal import read_journals
from tests.jobs.survival import STEPS, Lab, attempts, kill_many, started_steps, wait_for


@pytest.fixture(scope="module")
def undisturbed(demo_data, tmp_path_factory):
    lab = Lab(demo_data, tmp_path_factory.mktemp("undisturbed"))
    lab.finish(2)
    return lab


def steps_once(lab: Lab) -> None:
    """Metrics over all attempts: every step once, in order, to the end."""
    losses = [p.step for p in read_journals(lab.run.metrics) if "train/loss" in p.metrics]
    assert losses == list(range(1, STEPS + 1))


def check_killed(undisturbed: Lab, lab: Lab, kills: int, seed: int) -> None:
    kill_many(lab, 2, kills, seed)
    lab.finish(2)
    assert lab.final_hashes() == undisturbed.final_hashes()
    steps_once(lab)
    assert not list(lab.run.checkpoints.glob(".writing_*")) and not list(lab.run.checkpoints.glob("bad_*"))


def test_killed_at_random_moments_ends_with_the_same_bits(undisturbed, demo_data, tmp_path):
    check_killed(undisturbed, Lab(demo_data, tmp_path), kills=4, seed=0)


@pytest.mark.soak
def test_killed_twenty_times_ends_with_the_same_bits(undisturbed, demo_data, tmp_path):
    check_killed(undisturbed, Lab(demo_data, tmp_path), kills=20, seed=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_step_and_the_same_command_goes_on_from_it(undisturbed, demo_data, tmp_path, number):
    lab = Lab(demo_data, tmp_path)
    launcher = lab.start(2)
    assert wait_for(lambda: started_steps(lab, 0), launcher)
    launcher.send_signal(number)
    output = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 130 and "goes on from there" in output, output
    end = lab.run.last_end()
    assert end["reason"] == {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert (lab.run.checkpoints / f"step_{end['step']:09d}").is_dir(), "saved at the very step"
    output = lab.finish(2)
    words = f"resuming after step {end['step']} "
    assert words in output and any(words in log.read_text() for log in lab.run.logs.glob("local_*_rank0.log"))
    assert lab.final_hashes() == undisturbed.final_hashes()


def test_one_signalled_rank_is_enough(undisturbed, demo_data, tmp_path):
    import psutil

    lab = Lab(demo_data, tmp_path)
    launcher = lab.start(2)
    assert wait_for(lambda: started_steps(lab, 0), launcher)
    writer = lab.run.writer()["pid"]
    (other,) = [p for p in psutil.Process(launcher.pid).children() if p.pid != writer]
    assert other.environ()["PYTHONPATH"].split(":")[0] == str(lab.run.code), "what runs is the snapshot"
    other.send_signal(signal.SIGUSR2)
    output = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 130 and lab.run.last_end()["reason"] == "warned", output


def test_a_hung_rank_is_ended_with_its_stacks_written_down(demo_data, tmp_path):
    """SIGSTOP is a rank that does nothing any more; the others wait for it in a collective."""
    import psutil

    lab = Lab(demo_data, tmp_path)
    launcher = lab.start(2, "trainer.hang_seconds=4")
    assert wait_for(lambda: started_steps(lab, 0), launcher)
    ranks = psutil.Process(launcher.pid).children()
    (other,) = [p for p in ranks if p.pid != lab.run.writer()["pid"]]
    other.suspend()
    output = launcher.communicate(timeout=90)[0]
    assert launcher.returncode == 1 and "ended with exit code 70" in output, output
    hung = [e for e in lab.run.history() if e["event"] == "hung"]
    assert [e["rank"] for e in hung] == [0]
    stacks = (lab.run.logs / hung[0]["stacks"]).read_text()
    assert "trainer.py" in stacks and "fit" in stacks
    assert not psutil.wait_procs(ranks, timeout=10)[1], "no rank is left"


def test_the_number_of_processes_changes_neither_samples_nor_losses(demo_data, tmp_path):
    """1 -> 2 -> 1 against 1 throughout: same data and noise, losses of the steps after each change within 1e-3."""
    steady, changing = Lab(demo_data, tmp_path / "steady"), Lab(demo_data, tmp_path / "changing")
    steady.finish(1)
    for processes, steps in ((1, 20), (2, 40), (1, 60)):
        changing.finish(processes, f"trainer.max_steps={steps}")
    losses = [
        {p.step: p.metrics["train/loss"] for p in read_journals(lab.run.metrics) if "train/loss" in p.metrics}
        for lab in (steady, changing)
    ]
    for step in (*range(21, 41), *range(41, 61)):
        assert losses[1][step] == pytest.approx(losses[0][step], rel=1e-3), step
    states = [
        json.loads((lab.run.checkpoints / f"step_{STEPS:09d}" / "state.json").read_text()) for lab in (steady, changing)
    ]
    assert states[0]["data"] == states[1]["data"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(undisturbed, demo_data, tmp_path):
    lab = Lab(demo_data, tmp_path)
    lab.finish(2, "trainer.max_steps=20")
    weights = lab.run.checkpoints / "step_000000020" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    output = lab.finish(2)
    assert "step_000000020/model.safetensors is not the bytes that were written" in output
    assert "resuming after step 15 " in output
    assert [e for e in lab.run.history() if e["event"] == "checkpoint_rejected"]
    assert lab.final_hashes() == undisturbed.final_hashes()


def test_a_damaged_sample_is_replaced_counted_and_named(demo_data, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    shard = sorted((data / "cocochorales_simple_demo").glob("train-*.tar"))[0]
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        for at in range(5000, size, size // 50):  # 60 steps meet a part of the samples only
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 8]))
    lab = Lab(data, tmp_path / "runs")
    output = lab.finish(1)
    faults = [e["message"] for e in lab.run.history() if e["event"] == "data_fault"]
    assert faults and shard.name in faults[0], output
    again = Lab(data, tmp_path / "again")
    again.finish(2)
    losses = [
        [p.metrics["train/loss"] for p in read_journals(x.run.metrics) if "train/loss" in p.metrics]
        for x in (lab, again)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the substitute is the same on every world size"


def test_an_older_attempt_stops_when_a_later_one_has_the_lease(demo_data, tmp_path):
    lab = Lab(demo_data, tmp_path)
    launcher = lab.start(1, "trainer.max_steps=100000")
    assert wait_for(lambda: started_steps(lab, 0), launcher)
    before = sorted(p.name for p in lab.run.checkpoints.glob("step_*"))
    number = lab.run.claim_attempt()  # a successor: here only its lease
    assert number == attempts(lab)
    time.sleep(0.1)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    after = sorted(p.name for p in lab.run.checkpoints.glob("step_*"))
    assert len(after) <= len(before) + 3, "at most what was due before it looked at the lease"
    assert lab.run.last_end() is None, "the older attempt wrote no end into the successor's history"
