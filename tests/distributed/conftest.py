"""The zygote of tests/training, for ranks: processes that find each other as under torchrun."""

import processes
import pytest


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    made = processes.Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return processes.Tiny(processes.small_network(tmp_path_factory.mktemp("network")))
