"""The helpers beside the tests, and one thread: small tensors are faster so."""

import front
import pytest
import torch


@pytest.fixture
def inception(monkeypatch):
    """The small network instead of Inception."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    opening = front.Opening()
    monkeypatch.setattr("percepta.evaluation.evaluate.open_extractor", opening)
    yield opening
    torch.set_num_threads(before)
