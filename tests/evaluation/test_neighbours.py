"""Nearest neighbours: planted copies are found, distances are those of brute force, held-out images are the scale."""

import json

import front
import numpy as np
import pytest
from front import folder, picture
from PIL import Image

from percepta.evaluation.neighbours import choose, find_neighbours
from percepta.evaluation.sets import ImageSet, open_side
from percepta.spaces.extractor import open_extractor


def opened(root, **options):
    side = open_side(root, **options)
    assert isinstance(side, ImageSet)
    return side


def pixels(side):
    return np.stack(side.read(range(len(side)))).reshape(len(side), -1) / 127.5 - 1


def brute(a, b):
    return np.sqrt(((pixels(a)[:, None] - pixels(b)[None]) ** 2).sum(-1))


@pytest.fixture
def train(tmp_path):
    return opened(folder(tmp_path / "train", 25, first=100))


def find(fake, train, held, tmp_path, **options):
    # channels first in the space, last in files: the same distances
    return find_neighbours(fake, train, held, open_extractor("pixels"), "embedding", tmp_path / "cache", **options)


def test_distances_and_neighbours_are_those_of_brute_force(train, tmp_path):
    fake, held = opened(folder(tmp_path / "fake", 12)), opened(folder(tmp_path / "held", 9, first=300))
    found = find(fake, train, held, tmp_path, count=12, k=3)
    exact = brute(fake, train)
    order = exact.argsort(1)[:, :3]
    assert sorted(found.queries.tolist()) == list(range(12))
    assert np.array_equal(found.indices, order[found.queries])
    assert np.allclose(found.distances, np.take_along_axis(exact, order, 1)[found.queries], rtol=1e-5)
    assert np.allclose(found.all_generated, exact.min(1), rtol=1e-5)
    assert found.all_held_out is not None
    assert np.allclose(found.all_held_out, brute(held, train).min(1), rtol=1e-5)
    assert found.copying.generated == pytest.approx(np.median(exact.min(1)), rel=1e-5)
    assert found.copying.held_out == pytest.approx(np.median(brute(held, train).min(1)), rel=1e-5)
    low = np.quantile(brute(held, train).min(1), 0.01)
    assert found.copying.nearer == pytest.approx((exact.min(1) < low).mean())
    assert found.copying.same == 0


def test_a_planted_copy_is_found_wherever_it_lies(train, tmp_path):
    root = folder(tmp_path / "fake", 20)
    Image.fromarray(picture(100 + 17)).save(root / "013.png", compress_level=1)  # another file, the same pixels
    near = picture(100 + 4).astype(int)
    near[0, 0] = (near[0, 0] + 20) % 256
    Image.fromarray(near.astype(np.uint8)).save(root / "016.png")
    fake = opened(root)
    found = find(fake, train, opened(folder(tmp_path / "held", 15, first=300)), tmp_path, count=4, k=2)
    assert found.queries.tolist() == [0, 1, 13, 16]  # two plain ones, the two nearest
    assert found.indices[2:, 0].tolist() == [17, 4]
    assert found.distances[2, 0] == 0
    assert 0 < found.distances[3, 0] < found.distances[:2].min()
    assert found.copying.same == 1
    assert found.copying.nearer == pytest.approx(2 / 20)
    queries, neighbours = found.images(fake, train)
    assert np.array_equal(queries[2], neighbours[2][0])
    assert not np.array_equal(queries[3], neighbours[3][0])


def test_a_model_that_copies_all_is_told_from_one_that_does_not(train, tmp_path):
    held = opened(folder(tmp_path / "held", 15, first=300))
    copies = find(opened(folder(tmp_path / "copies", 10, first=100)), train, held, tmp_path)
    assert (copies.copying.nearer, copies.copying.same, copies.copying.generated) == (1.0, 10, 0.0)
    honest = find(opened(folder(tmp_path / "honest", 10, first=600)), train, held, tmp_path)
    assert honest.copying.nearer <= 0.2
    assert honest.copying.same == 0


def test_without_held_out_images_nothing_is_compared(train, tmp_path):
    found = find(opened(folder(tmp_path / "fake", 6)), train, None, tmp_path, count=8)
    assert (found.copying.held_out, found.copying.nearer, found.all_held_out) == (None, None, None)
    assert len(found.queries) == 6  # as many as there are
    told = json.loads(json.dumps(found.to_json()))
    assert told["space"] == "pixels-embedding"
    assert np.shape(told["neighbours"]) == np.shape(told["distances"]) == (6, 4)


def test_more_neighbours_than_images_is_an_error(tmp_path):
    fake, few = opened(folder(tmp_path / "fake", 6)), opened(folder(tmp_path / "few", 3, first=50))
    with pytest.raises(ValueError, match="4 neighbours were asked of 3 training images"):
        find(fake, few, None, tmp_path)


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 5]), (4, [0, 1, 5, 3]), (6, [0, 1, 2, 5, 3, 4])])
def test_half_of_the_queries_are_the_nearest(count, expected):
    assert choose(np.array([5.0, 4.0, 9.0, 2.0, 3.0, 1.0]), count).tolist() == expected


def test_rows_are_shared_with_the_evaluation(inception, train, tmp_path):
    fake = opened(folder(tmp_path / "fake", 12))
    lines: list[str] = []
    for _ in range(2):
        extractor = inception("inception")
        find_neighbours(fake, train, None, extractor, "768", tmp_path / "cache", note=lines.append)
    assert [line.split(":")[0] for line in lines] == ["cache miss", "cache miss", "cache hit", "cache hit"]
    assert inception.images == 37
    assert front.LAYERS["768"] == 6
