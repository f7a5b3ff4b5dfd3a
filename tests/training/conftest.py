"""Real processes and the smallest run, for tests of the whole loop."""

import processes
import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small tensors are faster so, and another number of threads gives other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    made = processes.Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return processes.Tiny(processes.small_network(tmp_path_factory.mktemp("network")))


@pytest.fixture(scope="session")
def dropping(tmp_path_factory):
    """The same with dropout."""
    return processes.Tiny(processes.small_network(tmp_path_factory.mktemp("dropping"), dropout=0.2))
