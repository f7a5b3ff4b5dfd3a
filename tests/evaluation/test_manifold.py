"""Precision, recall, density, coverage and neighbours against plain float64, at every block size, with ties; and the peer's values."""

import numpy as np
import pytest
import torch

from percepta.evaluation.manifold import density_coverage, nearest, precision_recall


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.double()[:, None] - y.double()[None]).square().sum(-1)


def radii(x: torch.Tensor, k: int) -> torch.Tensor:
    d = distances(x, x)
    d.fill_diagonal_(torch.inf)
    return d.sort(1).values[:, k - 1]


def plain(real: torch.Tensor, fake: torch.Tensor, k: int = 3, close: int = 5) -> tuple[float, ...]:
    """(precision, recall, density, coverage) from the definitions."""
    d = distances(fake, real)
    precision = (d <= radii(real, k)[None]).any(1).double().mean()
    recall = (d <= radii(fake, k)[:, None]).any(0).double().mean()
    inside = d < radii(real, close)[None]
    return precision.item(), recall.item(), inside.sum().item() / (close * len(fake)), inside.any(0).double().mean().item()


def both(real, fake, block: int) -> tuple[float, ...]:
    return (*precision_recall(real, fake, block=block), *density_coverage(real, fake, block=block))


CASES = {
    "plain": lambda: (torch.randn(150, 8), torch.randn(130, 8) * 0.9 + 0.2),
    "far from 0": lambda: (torch.randn(90, 5) + 300, torch.randn(80, 5) + 300.3),
    "one outlier": lambda: (torch.cat([torch.randn(60, 4), torch.full((1, 4), 1e4)]), torch.randn(50, 4)),
    "a subset of the real": lambda: (x := torch.randn(100, 6), x[::2] + 0),
    "copies": lambda: (torch.randn(20, 4).repeat(4, 1), torch.randn(15, 4).repeat(6, 1)),
    "whole numbers, many ties": lambda: (torch.randint(0, 4, (120, 3)).float(), torch.randint(0, 4, (90, 3)).float()),
    "tiny differences": lambda: (1 + 1e-4 * torch.randn(70, 16), 1 + 1e-4 * torch.randn(60, 16)),
    "the fewest rows": lambda: (torch.randn(6, 3), torch.randn(6, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_definitions_to_the_bit_at_every_block_size(case: str) -> None:
    real, fake = CASES[case]()
    expected = plain(real, fake)
    for block in (5, 32, 2048):
        assert both(real, fake, block) == pytest.approx(expected, abs=1e-12), block
    assert both(real.numpy(), fake.numpy(), 64) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_rows_does_not_matter(case: str) -> None:
    real, fake = CASES[case]()
    a = both(real, fake, 16)
    b = both(real[torch.randperm(len(real))], fake[torch.randperm(len(fake))], 16)
    assert a == b


def test_closed_cases() -> None:
    x = torch.randn(80, 6)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert density_coverage(x, x) == (1.0, 1.0)  # each ball holds its centre and k - 1 others
    assert precision_recall(x, x + 100) == (0.0, 0.0)
    assert density_coverage(x, x + 100) == (0.0, 0.0)
    collapsed = x[:1] + 1e-3 * torch.randn(80, 6)
    precision, recall = precision_recall(x, collapsed)
    assert precision == 1.0 and recall < 0.1
    p, r = precision_recall(x, collapsed)
    assert precision_recall(collapsed, x) == (r, p)  # each is the other's, sides exchanged


@pytest.mark.parametrize("block", [7, 2048])
def test_nearest(block: int) -> None:
    keys, queries = torch.randn(60, 5), torch.randn(23, 5)
    d, indices = nearest(queries, keys.numpy(), 4, block)
    expected, at = distances(queries, keys).sort(1)
    np.testing.assert_array_equal(indices, at[:, :4])
    np.testing.assert_allclose(d, expected[:, :4].sqrt(), rtol=1e-6)
    d, indices = nearest(keys, keys, 60, block)
    assert (d[:, 0] == 0).all() and (indices[:, 0] == np.arange(60)).all()
    assert (np.diff(d, axis=1) >= 0).all() and (np.sort(indices, axis=1) == np.arange(60)).all()


def test_nearest_among_copies_is_the_first() -> None:
    keys = torch.randn(5, 4).repeat(2, 1)
    d, indices = nearest(keys[5:], keys, 2, block=3)
    assert (d == 0).all() and (indices == np.stack([np.arange(5), np.arange(5, 10)], 1)).all()


def test_the_programs_own_precision_is_left_as_it_was() -> None:
    real, fake = CASES["plain"]()
    expected = both(real, fake, 32)
    torch.set_float32_matmul_precision("medium")
    try:
        assert both(real, fake, 32) == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_cannot_be_measured_is_said() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="at least 4 rows are needed, got 3"):
        precision_recall(x, torch.randn(9, 4))
    with pytest.raises(ValueError, match="k = 0"):
        density_coverage(torch.randn(9, 4), x, k=0)
    with pytest.raises(ValueError, match="between 1 and 3 neighbours"):
        nearest(x, x, 4)
    with pytest.raises(ValueError, match="differ in dimension"):
        nearest(x, torch.randn(5, 3), 1)


@pytest.mark.reference
@pytest.mark.parametrize("d", [16, 192])
def test_parity_with_torch_fidelity(d: int) -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full, calculate_precision_recall_part

    real, fake = torch.randn(700, d), torch.randn(650, d) * 0.93 + 0.05
    ours = precision_recall(real, fake, block=200)
    assert min(ours) > 0.05 and max(ours) < 0.999
    assert ours == pytest.approx(calculate_precision_recall_full(fake, real), abs=1e-7)
    assert ours == pytest.approx(calculate_precision_recall_part(fake, real, batch_size=300), abs=1e-7)
