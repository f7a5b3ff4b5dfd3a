"""Laws of fitting: what a network leaves alone comes back, in the size of the image, however the image was cut."""

import math
from itertools import pairwise

import pytest
import torch

from percepta.translating.fitting import Fitting, centre, mirrored, starts, tiles, translate_all

SHAPES = [(1, 1), (1, 300), (7, 5), (16, 16), (33, 50), (64, 40), (130, 131)]


def noise(h: int, w: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fit", ["tile", "pad"])
def test_the_identity_gives_the_image_back(fit, shape) -> None:
    image = noise(*shape)
    (out,) = translate_all(lambda x: x, [image], Fitting(fit, 32))
    torch.testing.assert_close(out, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_resize_keeps_size_aspect_and_flat_images(shape) -> None:
    seen = []
    image = torch.full((3, *shape), 0.25)
    (out,) = translate_all(lambda x: (seen.append(x.shape[-2:]), x)[1], [image], Fitting("resize", 32))
    torch.testing.assert_close(out, image)
    (h, w) = seen[0]
    assert min(h, w) == 32 and max(h, w) <= 256 and not h % 4 and not w % 4
    if max(shape) / min(shape) < 8:
        assert abs(math.log((h / w) / (shape[0] / shape[1]))) < 0.1


def test_resize_leaves_an_image_of_the_training_size_alone() -> None:
    image = noise(32, 48)
    (out,) = translate_all(lambda x: x, [image], Fitting("resize", 32))
    assert torch.equal(out, image)


def test_a_network_of_one_size_sees_no_other() -> None:
    def translate(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-2:] == (32, 32)
        return x

    images = [noise(*shape) for shape in SHAPES]
    for fit in ("resize", "tile"):
        out = translate_all(translate, images, Fitting(fit, 32, fixed=True))
        assert [tuple(o.shape[1:]) for o in out] == SHAPES
    with pytest.raises(ValueError, match="32 px only"):
        Fitting("pad", 32, fixed=True)


@pytest.mark.parametrize("length", [32, 33, 40, 56, 57, 500])
def test_windows_reach_both_borders_and_overlap(length) -> None:
    found = starts(length, 32)
    assert found[0] == 0 and found[-1] == length - 32
    assert all(0 < b - a <= 24 for a, b in pairwise(found))


def test_windows_fade_into_each_other() -> None:
    """Two windows of different brightness: no step between neighbouring pixels that a person would see as a seam."""
    parts = tiles(torch.zeros(3, 32, 56), 32)
    assert len(parts.given) == 2
    out = parts.back(torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]))
    assert out[0, 0, 0] == 0 and out[0, 0, -1] == 1
    assert float(out.diff(dim=-1).max()) < 0.2 and float(out.diff(dim=-1).min()) >= 0


def test_mirrors_reflect() -> None:
    row = torch.tensor([0.0, 1, 2]).expand(3, 1, 3)
    assert mirrored(row, 1, 9)[0, 0].tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]
    image = noise(5, 7)
    assert torch.equal(centre(mirrored(image, 16, 20), 5, 7), image)


def test_mixed_sizes_keep_their_places_at_any_batch() -> None:
    images = [noise(*shape, seed=k) for k, shape in enumerate([*SHAPES, *SHAPES[::-1]])]
    for fit in ("resize", "tile", "pad"):
        one = translate_all(lambda x: -x, images, Fitting(fit, 32), batch=1)
        many = translate_all(lambda x: -x, images, Fitting(fit, 32), batch=5)
        for image, a, b in zip(images, one, many, strict=True):
            assert torch.equal(a, b) and a.shape == image.shape
            if fit != "resize":
                torch.testing.assert_close(a, -image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fit", "size", "said"),
    [("tile", None, "give the size"), ("resize", None, "give the size"), ("tile", 30, "multiple of 4"), ("resize", 8, "from 16"),],
)  # fmt: skip
def test_wrong_fittings_are_refused(fit, size, said) -> None:
    with pytest.raises(ValueError, match=said):
        Fitting(fit, size)


def test_a_small_memory_and_a_broken_model_say_so() -> None:
    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ValueError, match="fit by tile"):
        translate_all(full, [noise(32, 32)], Fitting("pad", None))
    with pytest.raises(ValueError, match="not finite"):
        translate_all(lambda x: x / 0 * 0, [noise(32, 32)], Fitting("pad", None))
    with pytest.raises(RuntimeError, match="something else"):
        translate_all(lambda x: (_ for _ in ()).throw(RuntimeError("something else")), [noise(32, 32)], Fitting("pad", None))
