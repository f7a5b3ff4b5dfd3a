"""The smallest run, as in tests/training."""

import processes
import pytest
import torch
import translators


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small tensors are faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return processes.Tiny(processes.small_network(tmp_path_factory.mktemp("network")))


@pytest.fixture(scope="session")
def phases(tmp_path_factory):
    return translators.train_phases(tmp_path_factory.mktemp("phases"))
