"""The zygote of tests/training, for ranks: processes that find each other as under torchrun."""

import importlib.util
import sys
from pathlib import Path

import pytest

TRAINING = Path(__file__).parents[1] / "training"

for name in ("processes", "duel"):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])

import processes


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    made = processes.Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return processes.Tiny(processes.small_network(tmp_path_factory.mktemp("network")))
