"""KID: the peer's own values, the training loss on the same features, and no trace of how the work was cut."""

import numpy as np
import pytest
import torch

from percepta.discrepancies.mmd import Polynomial, mmd2
from percepta.evaluation import kid as room
from percepta.evaluation.kid import kid


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def sides(n: int = 300, m: int = 260, d: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, d) + 0.5, torch.rand(m, d) ** 1.3 + 0.5


def slowly(real: np.ndarray, fake: np.ndarray, subsets: int, size: int) -> np.ndarray:
    """Float64, subset by subset, with the draws of torch-fidelity."""
    draw = np.random.RandomState(2020)
    out = []
    for _ in range(subsets):
        f = fake[draw.choice(len(fake), size, replace=False)].astype("float64")
        r = real[draw.choice(len(real), size, replace=False)].astype("float64")
        kff, krr, kfr = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((f, f), (r, r), (f, r)))
        pairs = size * (size - 1)
        out.append((kff.sum() - kff.trace()) / pairs + (krr.sum() - krr.trace()) / pairs - 2 * kfr.mean())
    return np.array(out)


@pytest.mark.parametrize(("subsets", "size"), [(40, 100), (2, 30)], ids=["whole kernel", "subset by subset"])
@pytest.mark.parametrize("block", [64, 2048])
def test_equal_to_float64_either_way(subsets: int, size: int, block: int) -> None:
    real, fake = sides()
    assert room._whole_is_cheaper(300, 260, subsets, size, block) == (subsets == 40)
    expected = slowly(real.numpy(), fake.numpy(), subsets, size)
    for pair in ((real, fake), (real.numpy(), fake.numpy())):
        mean, std = kid(*pair, subsets, size, block=block)
        assert mean == pytest.approx(expected.mean(), abs=2e-7)
        assert std == pytest.approx(expected.std(), abs=2e-7)


def test_one_subset_of_all_rows_is_the_training_loss() -> None:
    real, fake = sides(200, 200)
    for kernel in (Polynomial(), Polynomial(2, 0.5, 0.1)):
        value, std = kid(real, fake, 1, 200, kernel=kernel)
        assert value == pytest.approx(mmd2(fake.double(), real.double(), kernel).item(), abs=2e-7)
        assert std == 0


def test_subsets_of_different_sides_are_drawn_apart_and_from_the_seed() -> None:
    real, fake = sides()
    assert kid(real, fake, 5, 50, seed=1) == kid(real, fake, 5, 50, seed=1)
    assert kid(real, fake, 5, 50, seed=1) != kid(real, fake, 5, 50, seed=2)


def test_it_is_0_on_average_for_equal_distributions_and_grows_with_the_difference() -> None:
    x = torch.randn(2000, 16)
    mean, std = kid(x[:1000], x[1000:], 50, 300)
    assert abs(mean) < 3 * std
    values = [kid(x[:1000], x[1000:] + shift, 20, 300)[0] for shift in (0.0, 0.2, 0.4)]
    assert values == sorted(values) and values[2] > 5 * std


def test_what_cannot_be_drawn_is_said() -> None:
    real, fake = sides(50, 40)
    with pytest.raises(ValueError, match="1000 rows cannot be drawn from 50 real and 40"):
        kid(real, fake)
    with pytest.raises(ValueError, match="0 of 10"):
        kid(real, fake, 0, 10)
    with pytest.raises(ValueError, match="differ in dimension"):
        kid(real, fake[:, :5], 2, 10)


@pytest.mark.reference
@pytest.mark.parametrize(("subsets", "size"), [(100, 150), (3, 50)])
def test_parity_with_torch_fidelity(subsets: int, size: int) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, fake = (x - 0.5 for x in sides(500, 400, 64))  # kernel values of 1 to 3, like Inception's: the peer sums them in float32
    theirs = kid_features_to_metric(fake, real, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    mean, std = kid(real, fake, subsets, size)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-6)


def test_a_test_set_of_a_hundred_needs_smaller_subsets() -> None:
    """Subsets of the whole set are all the same: their spread, 0, is of nothing. Larger ones cannot be drawn."""
    real, fake = sides(100, 100)
    whole, half = kid(real, fake, 100, 100), kid(real, fake, 100, 50)
    assert whole[1] < 1e-6 < half[1] and abs(whole[0] - half[0]) < half[1]
    with pytest.raises(ValueError, match="choose a smaller size"):
        kid(real, fake, 100, 101)
