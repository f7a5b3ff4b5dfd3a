"""Crops and resizes: exact where nothing is resampled, guided-diffusion's where it is; random ones stay inside and are keyed."""

import numpy as np
import pytest
import torch
from PIL import Image

from percepta.data import BadImage, Transform
from percepta.data.transforms import CROPS, FILTERS, to_float


def marks(height, width):
    """Each pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * x], -1).astype(np.uint8)


def test_the_middle_is_the_middle():
    stage, changes = Transform(16).stage(marks(16, 27), "a")
    assert changes == ()
    assert stage.shape == (3, 16, 16)
    assert stage[1, 0].tolist() == list(range(5, 21))
    for crop in CROPS:
        if crop != "jitter":
            assert np.array_equal(Transform(16, crop).stage(marks(16, 16), "a")[0], marks(16, 16).transpose(2, 0, 1))


def test_center_crop_is_guided_diffusions(make):
    image = make.picture(0, 70, 90)
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * 16:
        picture = picture.resize(tuple(side // 2 for side in picture.size), Image.Resampling.BOX)
    scale = 16 / min(picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    array = np.asarray(picture)
    top, left = ((side - 16) // 2 for side in array.shape[:2])
    assert np.array_equal(Transform(16).stage(image, "a")[0], array[top : top + 16, left : left + 16].transpose(2, 0, 1))


@pytest.mark.parametrize("name", FILTERS)
def test_filters_antialias_and_keep_the_mean(name):
    checks = np.repeat(((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    small = Transform(16, filter=name).stage(checks, "a")[0]
    assert np.abs(small.astype(int) - 127.5).max() < 30  # without antialiasing: 0 or 255


def test_stretch_pad_and_none():
    assert Transform(16, "stretch").stage(marks(32, 64), "a")[0].shape == (3, 16, 16)
    for background, value in (("white", 255), ("black", 0)):
        padded, _ = Transform(16, "pad", background=background).stage(marks(16, 8), "a")
        assert (padded[:, :, :4] == value).all()
        assert (padded[:, :, 12:] == value).all()
        assert padded[1, 3, 4:12].tolist() == list(range(8))
    with pytest.raises(BadImage, match=r"some\.png: is 17 x 16, asked for 16 x 16"):
        Transform(16, "none").stage(marks(16, 17), "some.png")


def test_enlarging_is_said():
    assert Transform(16).stage(marks(15, 40), "a")[1] == ("upsampled",)
    assert Transform(16).stage(marks(17, 17), "a")[1] == ()
    assert Transform(16, "pad").stage(marks(16, 4), "a")[1] == ()
    assert Transform(16, "stretch").stage(marks(40, 15), "a")[1] == ("upsampled",)


def test_thin_images_cannot_fill_the_memory():
    with pytest.raises(BadImage, match="more than 67,108,864 pixels"):
        Transform(256).stage(marks(1, 10000), "thin.png")


def test_random_places_are_keyed_reach_both_ends_and_agree():
    for crop, image in (("random-crop", marks(16, 24)), ("jitter", marks(32, 32))):
        transform = Transform(16, crop, flip=True)
        stage, _ = transform.stage(image, "a")
        draws = transform.draws(0, "order", np.arange(400))
        one = np.stack([transform.place_one(stage, *(v[k] for v in draws)) for k in range(400)])
        assert np.array_equal(one[7], transform.place_one(stage, *(v[0] for v in transform.draws(0, "order", np.array([7])))))
        assert 140 < draws.flip.sum() < 260
        if crop == "jitter":
            together = transform.place(torch.from_numpy(stage)[None].repeat(400, 1, 1, 1), draws)
            assert np.array_equal(together.numpy(), one)
            assert len({patch.tobytes() for patch in one}) == 2 * 3 * 3
        else:
            lefts = one[:, 1, 0].min(axis=1)
            assert set(lefts.tolist()) == set(range(9))
    plain = Transform(16).draws(0, "order", np.arange(9))
    assert not plain.flip.any()


def test_wrong_names_are_refused():
    for options in ({"crop": "centre"}, {"filter": "nearest"}, {"background": "red"}):
        with pytest.raises(ValueError, match=r"unknown .* known: "):
            Transform(16, **options)
    with pytest.raises(ValueError, match="at least 1"):
        Transform(0)


def test_floats_are_symmetric_exact_at_the_ends_and_round_back():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    x = to_float(bytes_)
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(x, -x.flip(0))
    assert torch.equal(((x + 1) * 127.5).round().to(torch.uint8), bytes_)
    assert (x.double() - (bytes_.double() / 127.5 - 1)).abs().max() < 1e-7
