"""Closed forms, singular covariances, accuracy to 1e-9, gradients, and the peers."""

import numpy as np
import pytest
import torch

from percepta.discrepancies.frechet import Gaussian, frechet, frechet_of_rows, squared_frechet


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def spd(d: int, low: float = 0.1) -> torch.Tensor:
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    return (q * torch.linspace(low, 2, d, dtype=torch.float64)) @ q.T


def gauss(cov: torch.Tensor, mean: torch.Tensor | float = 0.0, count: int | None = None) -> Gaussian:
    return Gaussian(torch.zeros(len(cov), dtype=torch.float64) + mean, cov, count)


def exact(a: Gaussian, b: Gaussian) -> float:
    """By two symmetric roots and singular values; no product of covariances is formed."""

    def root(c):
        w, v = torch.linalg.eigh(c)
        return (v * w.clamp(min=0).sqrt()) @ v.T

    cross = torch.linalg.svdvals(root(a.cov) @ root(b.cov)).sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def test_closed_forms() -> None:
    d, c = 24, spd(24)
    shift = torch.randn(d, dtype=torch.float64)
    assert abs(frechet(gauss(c), gauss(c))) < 1e-12 * d
    assert frechet(gauss(c), gauss(c, shift)) == pytest.approx(shift.square().sum().item(), rel=1e-11)
    assert frechet(gauss(c), gauss(9 * c)) == pytest.approx(4 * c.trace().item(), rel=1e-12)  # (3 - 1)^2 tr C
    w = torch.rand(d, dtype=torch.float64) + 0.1
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    u = torch.rand(d, dtype=torch.float64) + 0.1
    commuting = frechet(gauss((q * w) @ q.T), gauss((q * u) @ q.T))
    assert commuting == pytest.approx((w.sqrt() - u.sqrt()).square().sum().item(), rel=1e-11)
    assert frechet(gauss(torch.zeros(d, d, dtype=torch.float64)), gauss(c)) == pytest.approx(c.trace().item(), rel=1e-12)


def test_laws() -> None:
    a, b, c = gauss(spd(12)), gauss(spd(12), 0.3), gauss(spd(12), -0.2)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert frechet(a, b) > 0
    assert frechet(a, c) ** 0.5 <= frechet(a, b) ** 0.5 + frechet(b, c) ** 0.5  # its root is a distance
    q = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    turned = [Gaussian(q @ g.mean, q @ g.cov @ q.T) for g in (a, b)]
    assert frechet(*turned) == pytest.approx(frechet(a, b), rel=1e-11)


@pytest.mark.parametrize("low", [1e-1, 1e-5, 1e-9], ids=["well conditioned", "badly", "worse"])
def test_accuracy(low: float) -> None:
    for _ in range(3):
        a, b = gauss(spd(64, low)), gauss(spd(64, low), 0.1)
        assert frechet(a, b) == pytest.approx(exact(a, b), rel=1e-9)
        assert abs(frechet(a, a)) < 1e-9 * a.cov.trace()


def test_against_scipy() -> None:
    import scipy.linalg

    a, b = gauss(spd(40)), gauss(spd(40), 0.5)
    root = scipy.linalg.sqrtm((a.cov @ b.cov).numpy())
    expected = float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()) - 2 * np.trace(root).real
    assert frechet(a, b) == pytest.approx(expected, rel=1e-10)
    values = np.linalg.eigvals((a.cov @ b.cov).numpy()).astype(complex)
    assert frechet(a, b) == pytest.approx(expected + 2 * np.trace(root).real - 2 * np.sqrt(values).real.sum(), rel=1e-10)


@pytest.mark.parametrize(("m", "n"), [(10, 10), (10, 14), (10, 500), (500, 10), (33, 32), (400, 400)])
def test_rows_and_covariances_agree_also_where_rows_are_few(m: int, n: int) -> None:
    x, y = torch.rand(m, 32, dtype=torch.float64), torch.randn(n, 32, dtype=torch.float64) * 0.4
    rows = frechet_of_rows(x, y)
    stats = frechet(*(gauss(r.T.cov(), r.mean(0), len(r)) for r in (x, y)))
    unknown = frechet(*(gauss(r.T.cov(), r.mean(0)) for r in (x, y)))
    assert rows == pytest.approx(stats, rel=1e-9)
    assert rows == pytest.approx(unknown, rel=1e-9)
    assert rows == frechet_of_rows(x.numpy(), y.numpy())
    # the nuclear norm by another way: eigenvalues of the small Gram product, clear of the zeros
    a, b = ((r - r.mean(0)) / (len(r) - 1) ** 0.5 for r in (x, y))
    values = torch.linalg.eigvalsh(a @ b.T @ b @ a.T).flip(0)[: min(m - 1, n - 1, 32)]
    total = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * values.clamp(min=0).sqrt().sum()
    assert rows == pytest.approx(total.item(), rel=1e-9)


def test_a_singular_covariance_of_unknown_count() -> None:
    """Equal, singular Gaussians: a root of the product's eigenvalues would be off by 1e-8 for each of them."""
    x = torch.randn(20, 64, dtype=torch.float64)
    g = gauss(x.T.cov())
    assert abs(frechet(g, g)) < 1e-11 * g.cov.trace()
    dead = spd(16)
    dead[3], dead[:, 3] = 0, 0  # a feature that never fires
    assert frechet(gauss(dead), gauss(4 * dead)) == pytest.approx(dead.trace().item(), rel=1e-11)


def test_gradients() -> None:
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: squared_frechet(Gaussian.of(a), Gaussian.of(b)), (x, y))
    few = torch.randn(3, 6, dtype=torch.float32, requires_grad=True)
    (grad,) = torch.autograd.grad(squared_frechet(Gaussian.of(few), Gaussian.of(torch.randn(4, 6))), few)
    assert torch.isfinite(grad).all() and grad.abs().sum() > 0


def test_what_is_no_gaussian_is_said() -> None:
    c = spd(4)
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        frechet(gauss(c), gauss(spd(5)))
    with pytest.raises(ValueError, match="not finite"):
        frechet(gauss(c), gauss(c, float("nan")))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        frechet(gauss(c - 0.5 * torch.eye(4, dtype=torch.float64)), gauss(c))
    with pytest.raises(ValueError, match="two rows"):
        Gaussian.of(torch.randn(1, 4))
    with pytest.raises(ValueError, match="needs a covariance of"):
        Gaussian(torch.zeros(3, dtype=torch.float64), c)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")  # the peer's call of scipy
def test_parity_with_the_peers() -> None:
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = torch.rand(600, 96), torch.rand(500, 96) ** 1.2
    a, b = (fid_features_to_statistics(r) for r in (x, y))
    ours = frechet_of_rows(x, y)  # they average float32 rows in float32
    assert ours == pytest.approx(fid_statistics_to_metric(a, b, False)["frechet_inception_distance"], rel=1e-6)
    assert ours == pytest.approx(calculate_frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"]), rel=1e-6)


@pytest.mark.parametrize("d", [1, 2, 5, 33])
def test_the_value_with_and_without_gradients_is_one(d: int) -> None:
    """Without them the symmetric product is worked out in panels, and only its lower triangle."""
    x, y = torch.randn(3 * d + 3, d, dtype=torch.float64, requires_grad=True), torch.rand(3 * d + 3, d, dtype=torch.float64)
    assert frechet(Gaussian.of(x), Gaussian.of(y)) == pytest.approx(
        squared_frechet(Gaussian.of(x), Gaussian.of(y)).item(), rel=1e-11
    )
