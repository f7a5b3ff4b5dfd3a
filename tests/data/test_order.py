"""Order: a permutation per epoch, the same for everybody, and shares that tile a step."""

import numpy as np
import pytest

from percepta.data.order import hashed, indices_of, share, uniform


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_every_epoch_shows_each_image_once_and_in_an_order_of_its_own(n):
    epochs = [indices_of(range(e * n, (e + 1) * n), n, seed=3).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n == 100:
        assert epochs[0] != epochs[1] != list(range(n)) != epochs[0]
        assert epochs[0] != indices_of(range(n), n, seed=4).tolist()


def test_a_place_does_not_depend_on_what_is_asked_beside_it():
    whole = indices_of(range(50), 13, seed=0)
    assert [indices_of([k], 13, seed=0)[0] for k in range(50)] == whole.tolist()
    assert indices_of([40, 3, 26], 13, seed=0).tolist() == whole[[40, 3, 26]].tolist()


def test_the_hash_is_splitmix64():
    # the published first outputs of the generator started at 1234567
    assert hashed(1234567, np.arange(3, dtype=np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_uniform_numbers_are_uniform_and_independent_of_each_other():
    u = uniform(0, "flip", range(20000))
    other = uniform(0, "top", range(20000))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * 20000)
    assert abs(np.corrcoef(u, other)[0, 1]) < 4 / np.sqrt(20000)
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / np.sqrt(20000)


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_shares_are_those_of_array_split(count):
    for world in (1, 2, 3, 4):
        parts = [list(share(100, count, rank, world)) for rank in range(world)]
        assert parts == [part.tolist() for part in np.array_split(np.arange(100, 100 + count), world)]
