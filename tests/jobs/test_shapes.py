"""A step of shapes alone: counted as the real one, keeping what it keeps, and leaving alone what others may keep."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from jobs.configs import load_named
from jobs.describe import BATCHES, build, example
from jobs.shapes import ShapesOnly
from pipeline.arithmetic import Count
from pipeline.engine import StillEngine


class Network(nn.Module):
    """Of everything that the systems use: convolutions, normalisation, a recurrence, attention, views, writing in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.GroupNorm(4, 64)
        self.rnn, self.out = nn.LSTM(64, 48, batch_first=True), nn.Linear(48, 300)

    def forward(self, picture: Tensor) -> Tensor:
        lines = self.norm(self.conv(picture)).clamp_(min=-3).relu().mean(2).mT
        told, _ = self.rnn(lines)
        heads = self.out(told).unflatten(-1, (3, 2, 50)).permute(2, 0, 3, 1, 4)
        whole = torch.fft.irfft(torch.fft.rfft(nn.functional.scaled_dot_product_attention(*heads)))
        buffer = torch.zeros_like(whole)
        buffer[..., 5:, :] += whole[..., :-5, :]
        return buffer.square().mean()


def watched(
    network: nn.Module, picture: Tensor, mode: AbstractContextManager[object]
) -> tuple[int, int, list[torch.Size]]:
    """(operations, bytes kept, shapes of the gradients)."""
    kept: dict[tuple[int, int], int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr(), tensor._version] = storage.nbytes()
        return tensor

    with mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Count() as count:
        network(picture).backward()
    return count.flops, sum(kept.values()), [p.grad.shape for p in network.parameters() if p.grad is not None]


def test_shapes_count_and_keep_what_a_real_step_does():
    network, picture = Network(), torch.randn(4, 3, 32, 96)
    real = watched(network, picture, nullcontext())
    network.zero_grad()
    shapes = watched(network, picture, ShapesOnly([*network.parameters(), picture]))
    assert (shapes[0], shapes[2]) == (real[0], real[2])
    assert abs(shapes[1] / real[1] - 1) < 0.15, "some operations share memory where torch's rules do not say so"
    assert real[0] > 1e8 and len(real[2]) == len(list(network.parameters()))


def test_nothing_that_depends_on_the_batch_is_computed_and_all_else_is():
    wave, position = torch.randn(200_000), torch.arange(4)
    with ShapesOnly([wave]):
        louder = wave * 2
        window = torch.hann_window(100_000)  # a constant, which someone may keep
        assert position.tolist() == [0, 1, 2, 3]
        wave.add_(1)
    assert not louder.any() and louder.shape == wave.shape
    assert window.max() > 0.99 and torch.equal(window, torch.hann_window(100_000))
    assert wave.mean() < 0.5, "the batch was written to"


def test_what_has_no_rule_for_its_shape_is_computed():
    @torch.library.custom_op("slurmphony_tests::twice", mutates_args=())
    def twice(wave: Tensor) -> Tensor:
        return wave * 2

    wave = torch.ones(100_000)
    with ShapesOnly([wave]):
        assert torch.ops.slurmphony_tests.twice(wave).sum() == 200_000


def test_memory_that_was_zeros_and_is_someone_elses_now_is_computed_with():
    wave = torch.ones(1_000_000)
    with ShapesOnly([wave]) as shapes:
        for _ in range(20):
            wave * 2
        assert len(shapes._blank) == 1
        assert sum(int((torch.ones(1_000_000) * 2).sum()) for _ in range(20)) == 40_000_000


@pytest.mark.parametrize("name", ["diff_mst_demo", "jingle_d_demo"])
def test_a_systems_step_is_counted_as_it_is_made(name):
    module = build(load_named(name), None).train()
    batch, _ = example(module, BATCHES)
    flops = []
    for unknown in ([], [*module.parameters(), *(v for v in batch.values() if v.is_floating_point())]):
        with ShapesOnly(unknown), Count() as count:
            module.optimize(StillEngine(module), batch, module.configure_optimizers(), 1)
        flops.append(count.flops)
    assert flops[0] == flops[1] > 0
