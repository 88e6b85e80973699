"""What all tests of models share."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Sums come out the same, and workers beside this one keep their cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
