"""CMMD against the authors' formula in float64, and its laws."""

import math

import pytest
import torch

from percepta.discrepancies.mmd import Rbf, mmd2
from percepta.evaluation.cmmd import cmmd


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def plain(x: torch.Tensor, y: torch.Tensor) -> float:
    """1000 (mean k_xx + mean k_yy - 2 mean k_xy), k = exp(-|x - y|^2 / 200), all pairs, rows of length 1."""
    x, y = (r.double() / r.double().norm(dim=1, keepdim=True) for r in (x, y))

    def mean(a, b):
        return torch.exp(-(a[:, None] - b[None]).square().sum(-1) / 200).mean().item()

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize("block", [16, 2048])
@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_equal_to_float64(block: int, shift: float) -> None:
    x, y = torch.randn(90, 64), torch.randn(75, 64) + shift
    assert cmmd(x, y, block=block) == pytest.approx(plain(x, y), rel=1e-5, abs=1e-6)
    assert cmmd(x.numpy(), y.numpy(), block=block) == cmmd(x, y, block=block)


def test_laws() -> None:
    x, y = torch.randn(60, 32), torch.randn(50, 32) + 0.5
    assert cmmd(x, x) == pytest.approx(0, abs=1e-7)
    assert cmmd(x, x.clone()) == pytest.approx(0, abs=1e-6)
    assert cmmd(x, y) == pytest.approx(cmmd(y, x), rel=1e-6)
    assert cmmd(x, y) == pytest.approx(cmmd(x[torch.randperm(60)], y[torch.randperm(50)]), rel=1e-5)
    assert cmmd(3 * x, y) == pytest.approx(cmmd(x, y), rel=1e-6)  # only directions count
    assert cmmd(x, y, normalise=False) != pytest.approx(cmmd(x, y), rel=0.1)


def test_opposite_directions_have_a_closed_form() -> None:
    x = torch.eye(8)[:1].repeat(20, 1)
    assert cmmd(x, -x) == pytest.approx(2000 * (1 - math.exp(-4 / 200)), rel=1e-6)


def test_it_is_the_biased_training_loss() -> None:
    x, y = torch.randn(40, 16, dtype=torch.float64), torch.randn(30, 16, dtype=torch.float64) + 0.4
    expected = 1000 * mmd2(x, y, Rbf((10.0,)), unbiased=False).item()
    assert cmmd(x.float(), y.float(), normalise=False) == pytest.approx(expected, rel=1e-5)


def test_a_row_of_length_0_is_said() -> None:
    with pytest.raises(ValueError, match="length 0"):
        cmmd(torch.zeros(3, 4), torch.randn(3, 4))
