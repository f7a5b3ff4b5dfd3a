"""The smallest run, as in tests/training."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TRAINING = Path(__file__).parents[1] / "training"

if "processes" not in sys.modules:
    spec = importlib.util.spec_from_file_location("processes", TRAINING / "processes.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["processes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["processes"])

import processes


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
