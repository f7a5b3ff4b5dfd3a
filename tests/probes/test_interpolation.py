"""Where latents are small pictures, scaling one is scaling the other; where they are not, the numbers say by how much."""

import json

import pytest
import torch

from percepta.probes import interpolation
from percepta.probes.interpolation import resized


def test_pixels_that_are_latents_scale_like_images(look, squares):
    numbers = interpolation(look(squares(factor=1), scales=(0.5, 2.0))).numbers
    assert set(numbers) == {f"{mode}-{scale}" for mode in ("encoded", "nearest", "bilinear", "bicubic") for scale in (50, 200)}
    for scale in (50, 200):
        for mode in ("encoded", "bilinear"):
            assert numbers[f"{mode}-{scale}"]["latent_mse"] == numbers[f"{mode}-{scale}"]["image_mse"] == 0
            assert numbers[f"{mode}-{scale}"]["psnr"] is None
        for mode in ("nearest", "bicubic"):
            assert 0 < numbers[f"{mode}-{scale}"]["latent_mse"] == pytest.approx(numbers[f"{mode}-{scale}"]["image_mse"], rel=1e-3)
            assert 0 < numbers[f"{mode}-{scale}"]["latent_error"] < 1
    assert numbers["nearest-200"]["scale"] == 2


def test_numbers_are_the_means_that_they_say(look, images, squares):
    vae = squares(factor=4, scale=0.25)
    found = interpolation(look(vae, scales=(1.3,))).numbers["bicubic-130"]
    scaled = resized(images, 4 * 10, "bilinear")  # 8 * 1.3 = 10.4: ten latents
    true, z = vae.encode(scaled)[0], resized(vae.encode(images)[0], 10, "bicubic")
    assert found["scale"] == 1.25
    assert found["latent_mse"] == pytest.approx(float((z - true).square().mean()), rel=1e-5)
    assert found["latent_mse_raw"] == pytest.approx(16 * found["latent_mse"], rel=1e-5)
    error = float((vae.decode(z).clamp(-1, 1) - scaled).square().mean())
    assert found["image_mse"] == pytest.approx(error, rel=1e-5)
    assert found["psnr"] == pytest.approx(float(10 * torch.log10(4 / torch.tensor(error))), rel=1e-5)
    assert found["latent_error"] == pytest.approx(found["latent_mse"] / float(true.var((2, 3), correction=0).mean()), rel=1e-5)


def test_the_batch_does_not_matter(look, squares):
    one, all_ = (interpolation(look(squares(), scales=(2.0,), batch=batch)).numbers for batch in (1, 6))
    for name, found in one.items():
        assert found == pytest.approx(all_[name], rel=1e-6)


def test_the_picture_stands_with_its_words(look, squares):
    found = interpolation(look(squares(), scales=(0.5, 2.0)))
    assert [path.name for path in found.figures] == ["interpolation.png"]
    words = json.loads(found.figures[0].with_suffix(".json").read_text())
    assert "2 images at each of the scales 0.5, 2" in words["caption"] and words["alt"].startswith("4 rows")


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_scales_that_change_nothing_or_leave_nothing_are_refused(look, scale, squares):
    with pytest.raises(ValueError, match="a scale of"):
        interpolation(look(squares(), scales=(scale,)))
