"""Shapes: deterministic by index, recognisable, independent of size; two domains that share no scene."""

import numpy as np
import pytest

from percepta.data.shapes import BACKGROUNDS, COLOURS, DOMAINS, PAPER, SHAPES, TEXTURES, Shapes, attributes, draw


def test_an_image_depends_on_its_index_alone():
    source = Shapes(size=16)
    together = source.read_many(range(40))
    for k in (0, 7, 39):
        alone = source.read(k)
        assert np.array_equal(alone.image, together[k].image)
        assert alone.label == together[k].label
    assert len({item.image.tobytes() for item in together}) == 40
    assert not np.array_equal(Shapes(size=16, seed=1).read(0).image, together[0].image)


def test_the_drawing_is_frozen():
    # another drawing is another data set: raise VERSION, and put the new sum here
    assert [int(i.image.astype(int).sum()) for i in Shapes(size=16).read_many([0, 1, 2])] == [150915, 37525, 53994]


def test_labels_say_what_is_shown():
    source = Shapes()
    shown = source.attributes(range(500))
    assert source.num_classes == 64
    for k, item in enumerate(source.read_many(range(20))):
        assert source.class_names[item.label] == f"{list(COLOURS)[shown.colour[k]]} {SHAPES[shown.shape[k]]}"
    for labels, values, names in (("shape", shown.shape, SHAPES), ("colour", shown.colour, tuple(COLOURS))):
        other = Shapes(labels=labels)
        assert other.class_names == names
        assert [item.label for item in other.read_many(range(20))] == values[:20].tolist()
    assert Shapes(labels="none").read(0).label is None
    assert set(shown.shape) == set(range(8))
    assert set(shown.texture) == set(range(len(TEXTURES)))
    assert set(shown.background) == set(range(len(BACKGROUNDS)))
    assert np.unique(source.labels_of(source.attributes(range(3000)))).size == 64


def test_every_shape_keeps_its_colour_and_stays_inside():
    source = Shapes(size=64, textures="plain")
    shown = source.attributes(range(300))
    for k, item in enumerate(source.read_many(range(300))):
        ink = np.array(list(COLOURS.values())[shown.colour[k]])
        inked = np.abs(item.image.astype(int) - ink).sum(-1) < 6
        assert 0.02 < inked.mean() < 0.5
        rows, columns = np.nonzero(inked)
        assert rows.min() > 0
        assert columns.max() < 63
        assert np.hypot(columns.mean() / 64 - shown.x[k], rows.mean() / 64 - shown.y[k]) < 0.5 * shown.radius[k]


def test_colours_can_be_told_apart():
    colours = np.array([*COLOURS.values(), *BACKGROUNDS], dtype=float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(len(colours))
    assert distance[:8].min() > 70


def test_a_scene_is_the_same_at_any_size():
    large = np.stack([i.image for i in Shapes(size=64, textures="plain").read_many(range(64))]).astype(float)
    small = np.stack([i.image for i in Shapes(size=16, textures="plain").read_many(range(64))])
    assert np.abs(large.reshape(64, 16, 4, 16, 4, 3).mean(axis=(2, 4)) - small).mean() < 1.5
    assert Shapes(size=8).read(0).image.shape == (8, 8, 3)


def test_edges_are_soft():
    """Anti-aliasing: the covered area of a disc is right to a part of a pixel, which no hard edge gives."""
    shown = attributes(np.arange(400), 0, "plain")
    discs = shown._replace(
        shape=np.zeros_like(shown.shape), background=np.zeros_like(shown.background), gradient=0 * shown.gradient
    )
    images = draw(discs, 32, "filled").astype(float)
    ink, back = np.array(list(COLOURS.values()), dtype=float)[discs.colour], np.array(BACKGROUNDS[0], dtype=float)
    area = ((images - back).sum(axis=(1, 2)) * (ink - back)).sum(-1) / ((ink - back) ** 2).sum(-1)
    assert np.abs(area - np.pi * (0.92 * discs.radius * 32) ** 2).max() < 0.7


def test_domains_share_no_scene_but_a_hidden_truth():
    outline, filled = Shapes(domain="outline", length=200), Shapes(length=200)
    ours = attributes(np.arange(200) + DOMAINS["outline"], 0)
    assert np.array_equal(outline.attributes(range(200)).x, ours.x)
    assert not set(outline.attributes(range(200)).x.tolist()) & set(filled.attributes(range(200)).x.tolist())
    pair = outline.hidden_pair(5)
    assert np.array_equal(pair, draw(outline.attributes([5]), 32, "filled")[0])
    assert not np.array_equal(pair, outline.read(5).image)
    assert np.array_equal(filled.hidden_pair(3), draw(filled.attributes([3]), 32, "outline")[0])


def test_on_paper_an_outline_tells_all_of_its_filled_shape():
    """The same shapes as in front of other backgrounds, nothing behind them, and the two domains differ inside the shape alone."""
    wide, paper = Shapes(textures="plain", length=64), Shapes(textures="plain", backgrounds="paper", length=64)
    ours, theirs = (source.attributes(range(64)) for source in (paper, wide))
    assert all(
        np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("shape", "colour", "x", "y", "radius", "angle")
    )
    outline = np.stack([paper.hidden_pair(k) for k in range(64)])
    filled = np.stack([item.image for item in paper.read_many(range(64))])
    assert ((filled == np.uint8(PAPER)).all(-1).mean((1, 2)) > 0.3).all()
    differ = (outline != filled).any(-1)
    assert 0.02 < differ.mean() < 0.4 and not (differ & (filled == np.uint8(PAPER)).all(-1)).any()
    assert len({source.fingerprint for source in (wide, paper)}) == 2
    with pytest.raises(ValueError, match="backgrounds"):
        Shapes(backgrounds="none")


def test_indices_outside_are_an_error():
    with pytest.raises(IndexError, match="0 to 9, got 10"):
        Shapes(length=10).read(10)


def test_some_shapes_alone_are_the_scenes_that_show_them():
    every, some = Shapes(size=16, labels="shape", length=400), Shapes(size=16, labels="shape", length=40, only="star+cross")
    assert some.class_names == ("star", "cross") and {item.label for item in some.read_many(range(40))} == {0, 1}
    wanted = [item for item in every.read_many(range(400)) if every.class_names[item.label] in some.class_names][:40]
    for mine, theirs in zip(some.read_many(range(40)), wanted, strict=True):
        assert np.array_equal(mine.image, theirs.image) and some.class_names[mine.label] == every.class_names[theirs.label]
    both = Shapes(length=20, only="cross")
    assert both.class_names == tuple(f"{colour} cross" for colour in COLOURS)
    assert {both.class_names[item.label].split()[1] for item in both.read_many(range(20))} == {"cross"}
    assert len({Shapes(length=20, only=only).fingerprint for only in ("", "cross", "star")}) == 3
    assert Shapes(length=20).fingerprint == Shapes(length=20, only="").fingerprint


@pytest.mark.parametrize("only", ["disk", "star+star", "star,cross"])
def test_shapes_that_are_not_known_are_refused(only):
    with pytest.raises(ValueError, match="only="):
        Shapes(only=only)
