"""Moments are numpy's to the last digits, however the rows are cut, and to the bit where the cuts are the same."""

import numpy as np
import pytest
import torch

from percepta.discrepancies.frechet import frechet, frechet_of_rows
from percepta.evaluation.moments import CHUNK, Moments


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_equal_to_numpy(offset: float, chunk: int) -> None:
    rows = torch.randn(200, 5) * torch.arange(1, 6) + offset
    wide = rows.double().numpy()
    for given in (rows, rows.numpy()):
        found = Moments.of(given, chunk)
        assert found.count == 200
        np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-11, atol=1e-12)


def test_digits_survive_an_offset_that_raw_sums_do_not() -> None:
    wide = np.random.default_rng(0).standard_normal((500, 3)) + 1e7
    raw = (wide.T @ wide - 500 * np.outer(wide.mean(0), wide.mean(0))) / 499
    expected = np.cov(wide, rowvar=False)
    found = Moments.of(wide, 50).covariance.numpy()
    assert np.abs(found - expected).max() < 1e-8 < np.abs(raw - expected).max()


def test_the_same_bits_whoever_worked_out_the_chunks() -> None:
    rows = torch.randn(50, 4).numpy()
    whole = Moments.of(rows, 8)
    parts = [Moments.of_chunk(rows[k : k + 8].copy()) for k in range(0, 50, 8)]
    merged = Moments.total(iter(parts))
    resumed = Moments.total(parts[:3])
    for part in parts[3:]:
        resumed = resumed + part
    for other in (merged, resumed):
        assert other.count == whole.count and torch.equal(other.mean, whole.mean) and torch.equal(other.scatter, whole.scatter)


def test_merging_in_any_order_is_equal_to_rounding() -> None:
    a, b, c = (Moments.of(torch.randn(n, 3)) for n in (3, 10, 100))
    for x, y in (((a + b) + c, a + (b + c)), (a + b, b + a)):
        assert x.count == y.count
        torch.testing.assert_close(x.mean, y.mean, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(x.scatter, y.scatter, rtol=1e-12, atol=1e-13)


def test_more_rows_than_a_chunk_from_a_file(tmp_path) -> None:
    rows = np.random.default_rng(0).standard_normal((CHUNK + 5, 3)).astype("float32")
    np.save(tmp_path / "rows.npy", rows)
    found = Moments.of(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype("float64"), rowvar=False), rtol=1e-12, atol=1e-14)


def test_the_distance_is_that_of_the_rows() -> None:
    x, y = torch.randn(60, 8), torch.rand(70, 8)
    assert frechet(Moments.of(x, 9).gaussian(), Moments.of(y, 9).gaussian()) == pytest.approx(frechet_of_rows(x, y), rel=1e-11)


def test_what_has_no_moments_is_said() -> None:
    with pytest.raises(ValueError, match="two rows or more, got 1"):
        _ = Moments.of(torch.randn(1, 3)).covariance
    with pytest.raises(ValueError, match="no rows were read"):
        Moments.total([])
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        _ = Moments.of(torch.randn(2, 3)) + Moments.of(torch.randn(2, 4))
    with pytest.raises(ValueError, match="at least 1 rows"):
        Moments.of(torch.randn(0, 3))
