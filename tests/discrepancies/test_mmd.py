"""Laws of the MMD: unbiased, diagonal excluded, equal to the double sum written out, right gradients, digits kept in float32."""

import itertools

import pytest
import torch

from percepta.discrepancies.mmd import (
    CUBIC,
    AbstractKernel,
    Linear,
    MedianRbf,
    Polynomial,
    Rbf,
    kernel_named,
    median_bandwidth,
    mmd2,
    squared_distances,
)

KERNELS = [Linear(), CUBIC, Polynomial(2, 0.5, 0.3), Rbf(), Rbf((0.5, 2.0, 4.0)), Rbf((1.0, 3.0), (0.2, 0.8))]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def by_hand(x: torch.Tensor, y: torch.Tensor, k, unbiased: bool) -> float:
    def mean(a, b, skip):
        pairs = [k(p, q) for (i, p), (j, q) in itertools.product(enumerate(a), enumerate(b)) if not (skip and i == j)]
        return sum(pairs) / len(pairs)

    return mean(x, x, unbiased) - 2 * mean(x, y, False) + mean(y, y, unbiased)


@pytest.mark.parametrize("unbiased", [True, False])
def test_it_is_the_double_sum(unbiased: bool) -> None:
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64) + 1
    hand = {
        Linear(): lambda p, q: float(p @ q),
        CUBIC: lambda p, q: float(p @ q / 3 + 1) ** 3,
        Polynomial(2, 0.5, 0.3): lambda p, q: float(0.3 * p @ q + 0.5) ** 2,
        Rbf(): lambda p, q: float(torch.exp(-((p - q) ** 2).sum() / 3)),
        Rbf((1.0, 3.0), (0.2, 0.8)): lambda p, q: sum(
            w * float(torch.exp(-((p - q) ** 2).sum() / (2 * s * s))) for s, w in ((1.0, 0.2), (3.0, 0.8))
        ),
    }
    for kernel, k in hand.items():
        assert mmd2(x, y, kernel, unbiased).item() == pytest.approx(by_hand(x, y, k, unbiased), rel=1e-10), kernel


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_unbiased_estimate_is_0_on_average_for_equal_distributions(kernel: AbstractKernel) -> None:
    draws = torch.stack([mmd2(torch.randn(8, 4), torch.randn(12, 4), kernel) for _ in range(1500)]).double()
    assert draws.mean().abs() < 4 * draws.std() / 1500**0.5  # the biased one lies 20 to 60 standard errors off
    biased = torch.stack([mmd2(torch.randn(8, 4), torch.randn(12, 4), kernel, unbiased=False) for _ in range(100)])
    assert biased.min() > 0


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_laws(kernel: AbstractKernel) -> None:
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64) + 0.5
    for unbiased in (True, False):
        value = mmd2(x, y, kernel, unbiased)
        torch.testing.assert_close(mmd2(y, x, kernel, unbiased), value)
        torch.testing.assert_close(mmd2(x[torch.randperm(9)], y[torch.randperm(6)], kernel, unbiased), value)
    torch.testing.assert_close(mmd2(x, x, kernel, unbiased=False), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


def test_linear_is_the_distance_of_means() -> None:
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(mmd2(x, y, Linear(), unbiased=False), (x.mean(0) - y.mean(0)).square().sum())


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("unbiased", [True, False])
def test_gradients(kernel: AbstractKernel, unbiased: bool) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: mmd2(a, b, kernel, unbiased), (x, y))


def test_gradients_are_finite_where_rows_are_equal() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    for kernel in KERNELS:
        (grad,) = torch.autograd.grad(mmd2(x, torch.ones(4, 3), kernel), x)
        assert torch.isfinite(grad).all(), kernel


def test_descending_it_brings_the_samples_to_the_data() -> None:
    data = torch.randn(128, 2) * 0.5 + torch.tensor([2.0, -1.0])
    x = torch.randn(128, 2, requires_grad=True)
    before = mmd2(x, data, unbiased=False).item()
    optimizer = torch.optim.Adam([x], lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        mmd2(x, data, unbiased=False).backward()  # free points can drive the unbiased one below 0: they are no fresh draws
        optimizer.step()
    assert mmd2(x, data, unbiased=False).item() < 0.01 * before
    torch.testing.assert_close(x.mean(0), data.mean(0), atol=0.2, rtol=0)


def test_float32_keeps_its_digits() -> None:
    """Features like Inception's: all positive, so the kernel is large and nearly constant; sums in float32 would lose three digits more."""
    x, y = torch.rand(512, 256, dtype=torch.float64) + 2, torch.rand(512, 256, dtype=torch.float64) + 2.003
    exact = mmd2(x, y).item()
    kernel = (x @ x.T / 256 + 1) ** 3
    assert abs(mmd2(x.float(), y.float()).item() - exact) < 1e-8 * kernel.mean().item()


def test_half_precision_is_widened_and_autocast_kept_out() -> None:
    x, y = torch.randn(16, 8), torch.randn(16, 8) + 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mmd2(x, y), mmd2(x, y).float())
        inside = mmd2(x, y)
    assert inside == mmd2(x, y)
    assert mmd2(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    assert mmd2(x.bfloat16(), y.bfloat16()) == mmd2(x.bfloat16().float(), y.bfloat16().float())


def test_distances_far_from_the_origin() -> None:
    x = torch.randn(6, 4) + 1000
    torch.testing.assert_close(
        squared_distances(x, x[:3]), torch.cdist(x.double(), x[:3].double()).square().float(), atol=1e-5, rtol=1e-4
    )


def test_median_bandwidth() -> None:
    x, y = torch.randn(7, 3), torch.randn(8, 3)
    expected = torch.pdist(torch.cat([x, y])).median().item()
    assert median_bandwidth(x, y) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="equal"):
        median_bandwidth(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="two rows"):
        median_bandwidth(torch.ones(1, 2), torch.ones(0, 2))


def test_what_cannot_be_estimated_is_said() -> None:
    with pytest.raises(ValueError, match="got 1 and 5"):
        mmd2(torch.randn(1, 3), torch.randn(5, 3))
    assert torch.isfinite(mmd2(torch.randn(1, 3), torch.randn(5, 3), unbiased=False))
    for wrong in (lambda: Rbf(()), lambda: Rbf((0.0,)), lambda: Rbf((1.0,), (1.0, 2.0)), lambda: Polynomial(0)):
        with pytest.raises(ValueError):
            wrong()


def test_kernels_by_name() -> None:
    rows = torch.randn(9, 4)
    assert kernel_named("cubic", None, lambda: rows) == CUBIC
    assert kernel_named("rbf", " 2, 8", lambda: rows) == Rbf((2.0, 8.0))
    median = kernel_named("rbf", "0.5*median,median", lambda: rows)
    assert isinstance(median, MedianRbf)
    middle = torch.pdist(rows).median().item()
    x, y = torch.randn(5, 4), torch.randn(6, 4)
    torch.testing.assert_close(median(x, y), Rbf((middle / 2, middle))(x, y))
    rows = torch.zeros(9, 4)  # what was read first stays
    torch.testing.assert_close(median(x, y), Rbf((middle / 2, middle))(x, y))
    for name, bandwidth, said in (
        ("cosine", None, "unknown kernel"),
        ("cubic", "2", "belongs to --kernel rbf"),
        ("rbf", "2,median", "not both"),
        ("rbf", ",", "not both"),
        ("rbf", "two", "a number above 0"),
        ("rbf", "-1*median", "a number above 0"),
        ("rbf", "0", "a number above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            kernel_named(name, bandwidth, lambda: rows)
