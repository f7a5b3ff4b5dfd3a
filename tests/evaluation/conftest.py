"""The helpers beside the tests, and one thread: small tensors are faster so."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

if "front" not in sys.modules:
    spec = importlib.util.spec_from_file_location("front", Path(__file__).with_name("front.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules["front"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["front"])

import front


@pytest.fixture
def inception(monkeypatch):
    """The small network instead of Inception."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    opening = front.Opening()
    monkeypatch.setattr("percepta.evaluation.evaluate.open_extractor", opening)
    yield opening
    torch.set_num_threads(before)
