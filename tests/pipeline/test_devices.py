"""Which device a process takes, what float32 means there, and what data parallelism leaves alone: told of GPUs that are not here."""

import pytest
import torch

from jobs.planning import gpus_here
from pipeline import distributed
from pipeline.config import TrainerSection
from pipeline.distributed import Ddp, choose_arithmetic, own_device
from pipeline.errors import RunFailed
from pipeline.world import World


@pytest.fixture
def four_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for number in range(4):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr("jobs.planning.DEVICES", tmp_path)


def test_a_process_takes_the_gpu_of_its_number_and_says_when_it_is_shown_too_few(four_gpus, monkeypatch):
    assert own_device(World(6, 8, 2, 4, 1)) == torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(RunFailed, match=r"process 2 of its node and is shown 1 GPU\(s\), CUDA_VISIBLE_DEVICES=2"):
        own_device(World(6, 8, 2, 4, 1))


@pytest.mark.parametrize(
    ("shown", "count"), [(None, 4), ("0,1", 2), ("GPU-8932f937", 1), ("", 0), ("-1", 0), ("0,1,2,3,4,5", 4)]
)
def test_a_launch_here_takes_the_gpus_that_the_shell_may_use(four_gpus, monkeypatch, shown, count):
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert gpus_here() == count


def test_batches_stay_where_they_are_in_data_parallel_training():
    """Told of its GPU, torch's DDP would copy positions there in every forward, and Lightning would put DDP on a stream of its own."""
    strategy = Ddp(parallel_devices=[torch.device("cuda", 0)])
    assert super(Ddp, strategy)._determine_ddp_device_ids() == [0] and strategy._determine_ddp_device_ids() is None


@pytest.fixture
def arithmetic():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield lambda: (
        torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic,
    )  # fmt: skip
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_float32_is_exact_unless_tf32_is_asked_for(arithmetic):
    for precision in ("tf32", "32", "bf16"):
        choose_arithmetic(TrainerSection(max_steps=1, precision=precision))
        fast = precision == "tf32"
        assert arithmetic() == ("high" if fast else "highest", fast, False, False)


def test_determinism_is_for_runs_that_ask_for_it(arithmetic):
    for wanted in (True, False):
        choose_arithmetic(TrainerSection(max_steps=1, deterministic=wanted))
        assert arithmetic()[2:] == (wanted, wanted)
    assert distributed.make_fabric(TrainerSection(max_steps=1, precision="tf32"), World()).device.type == "cpu"
