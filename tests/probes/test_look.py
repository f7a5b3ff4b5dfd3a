"""The images that are looked at, and what a look refuses."""

import pytest
import torch

from percepta.data import open_source
from percepta.probes.look import decibel, first_images, pixels


def test_images_are_spread_over_the_set():
    source = open_source("shapes:length=40", 16)
    every = first_images(source, 40, 16)
    assert every.shape == (40, 3, 16, 16) and every.min() >= -1 and every.max() <= 1
    torch.testing.assert_close(first_images(source, 4, 16), every[[0, 10, 20, 30]], rtol=0, atol=0)
    assert len(first_images(source, 99, 16)) == 40


def test_a_size_that_does_not_fit_is_refused(look, squares):
    with pytest.raises(ValueError, match="multiple of 5"):
        look(squares(factor=5))
    with pytest.raises(ValueError, match="at least 64"):
        look(squares(factor=32))


def test_batches_are_all_images_in_order_and_can_be_left(look, images, squares):
    batches = list(look(squares(), batch=4).batches())
    assert [first for first, _ in batches] == [0, 4]
    torch.testing.assert_close(torch.cat([x for _, x in batches]), images)

    def leave():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(look(squares(), check=leave).batches())


def test_pictures_and_decibels():
    assert [one.shape for one in pixels(torch.zeros(2, 3, 4, 4), 8)] == [(8, 8, 3)] * 2
    assert decibel(0.04) == pytest.approx(20) and decibel(0.0) is None
