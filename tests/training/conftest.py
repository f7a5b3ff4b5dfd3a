"""Real processes and the smallest run, for tests of the whole loop."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch


def load(path: Path):
    """A helper beside the tests, as a module of its name."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
    return sys.modules[path.stem]


processes = load(Path(__file__).with_name("processes.py"))  # test files of this folder import both by these names
load(Path(__file__).with_name("duel.py"))


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
