"""What a shape's image shows: read without a mistake of real images, by chance of wrong ones, and not learnt from anything."""

import numpy as np
import pytest

from percepta.data import Shapes
from percepta.data.shapes import COLOURS, SHAPES
from percepta.evaluation.attributes import _pixels, _rest, accuracy, comparable, recognised


def drawn(count=60, size=32, **options):
    source = Shapes(size=size, length=count, part="test", **options)
    return [item.image for item in source.read_many(range(count))], source.attributes(range(count)), source


@pytest.mark.parametrize("domain", ["filled", "outline"])
@pytest.mark.parametrize("size", [16, 32, 80])
def test_real_images_are_read_right_and_others_by_chance(domain, size):
    images, scenes, _ = drawn(40 if size > 32 else 60, size, domain=domain)
    assert min(accuracy(images, scenes, domain)) >= (1.0 if size <= 32 else 0.95)
    wrong = accuracy(images[::-1], scenes, domain)
    assert max(wrong) < 0.4


def test_the_true_shape_explains_its_image_texture_and_all():
    images, scenes, _ = drawn(20)
    assert len(set(scenes.texture)) == 4
    rest = np.sort(_rest(_pixels(images), scenes, "filled"))
    assert rest[-2] < 0.01  # of 3072 values in [0, 1]: what rounding leaves; a background that is brighter than white is cut off


def test_noise_does_not_hide_a_shape_and_texture_not_a_colour():
    images, scenes, _ = drawn(80)
    noise = np.random.default_rng(0).normal(0, 40, (len(images), 32, 32, 3))
    noisy = list((np.stack(images) + noise).clip(0, 255).astype(np.uint8))
    assert min(accuracy(noisy, scenes, "filled")) > 0.95
    assert len(set(scenes.texture)) == 4


def test_each_answer_is_the_one_that_is_shown():
    images, scenes, _ = drawn(80)
    found = recognised(images, scenes, "filled")
    assert (found.shape == scenes.shape).all() and set(found.shape) == set(range(len(SHAPES)))
    assert (found.colour == scenes.colour).all() and set(found.colour) == set(range(len(COLOURS)))
    turned = recognised([image[..., ::-1] for image in images], scenes, "filled")  # red is blue now: the shape stays
    assert (turned.shape == scenes.shape).mean() > 0.95 and (turned.colour == scenes.colour).mean() < 0.5


def test_a_blank_image_shows_what_chance_makes_of_it():
    _, scenes, _ = drawn(80)
    assert max(accuracy([np.full((32, 32, 3), 128, np.uint8)] * 80, scenes, "filled")) < 0.35


def test_only_shapes_that_occur_are_candidates():
    images, scenes, source = drawn(30, only="star+ring")
    found = recognised(images[::-1], scenes, "filled", source.shown)
    assert set(found.shape) <= {SHAPES.index("star"), SHAPES.index("ring")}
    assert comparable(source, Shapes(domain="outline", only="ring+star")) and not comparable(source, Shapes())


def test_what_cannot_be_read_is_refused():
    images, scenes, _ = drawn(4)
    with pytest.raises(ValueError, match="each image needs its scene, got 3 images and 4 scenes"):
        accuracy(images[:3], scenes, "filled")
    with pytest.raises(ValueError, match="shapes are square images, got 32 x 20"):
        accuracy([image[:20] for image in images], scenes, "filled")
