"""A decoder that reaches no further than its latent keeps the error inside; one that blurs lets so much out as it blurs."""

import pytest
import torch

from percepta.probes import perturbation
from percepta.probes.perturbation import distances


def test_a_latent_with_pixels_of_its_own_keeps_its_error(look, squares):
    numbers = perturbation(look(squares())).numbers
    assert numbers["share_outside"] == numbers["changed_outside"] == numbers["rmse_outside"] == 0
    assert numbers["rmse_inside"] > 0.05 and numbers["beyond-1"] == 0


def test_noise_has_half_the_latents_variance(look, images, squares):
    """Of each channel: without clamping the error inside is that of the noise."""
    calm = 0.2 * images
    found = perturbation(look(squares(), draws=400)).numbers
    variance = squares().encode(images)[0].var((0, 2, 3), correction=0).mean()
    assert found["rmse_inside"] < float((0.5 * variance).sqrt())  # some is clamped away
    quiet = look(squares(), draws=400)
    object.__setattr__(quiet, "images", calm)
    variance = squares().encode(calm)[0].var((0, 2, 3), correction=0).mean()
    assert perturbation(quiet).numbers["rmse_inside"] == pytest.approx(float((0.5 * variance).sqrt()), rel=0.05)


def test_a_blur_lets_out_what_it_spreads(look, squares):
    numbers = perturbation(look(squares(blur=1))).numbers
    assert 0 < numbers["share_outside"] < 0.5 and numbers["beyond-1"] == 0
    wide = perturbation(look(squares(blur=6))).numbers
    assert wide["share_outside"] > numbers["share_outside"] and wide["beyond-1"] > 0
    assert wide["beyond-2"] == 0, "a blur of 6 pixels reaches one latent and a half"
    assert wide["changed_outside"] > numbers["changed_outside"]


def test_distances_are_those_to_the_square():
    away = distances(8, 3, 2)
    assert away[3:5, 3:5].abs().sum() == 0
    assert away[0].tolist() == [3.0] * 8 and away[3].tolist() == [3.0, 2.0, 1.0, 0.0, 0.0, 1.0, 2.0, 3.0]
    torch.testing.assert_close(away, away.T)


def test_the_seed_decides_and_the_batch_does_not(look, squares):
    first = perturbation(look(squares(blur=1), batch=6, seed=1)).numbers
    assert perturbation(look(squares(blur=1), batch=2, seed=1)).numbers == pytest.approx(first, rel=1e-9)
    assert perturbation(look(squares(blur=1), batch=6, seed=2)).numbers["rmse_inside"] != first["rmse_inside"]


def test_pictures_and_what_was_done(look, squares):
    found = perturbation(look(squares(blur=1), patch=2))
    assert [path.name for path in found.figures] == ["perturbation.png", "perturbation-images.png"]
    assert all(path.is_file() and path.with_suffix(".json").is_file() for path in found.figures)
    assert found.how == {"patch": 2, "noise_share": 0.5, "draws": 4, "latent_side": 8, "factor": 4}


@pytest.mark.parametrize(("knobs", "said"), [({"patch": 8}, "patch"), ({"patch": 0}, "patch"), ({"draws": 0}, "--draws")])
def test_knobs_that_do_not_fit_are_refused(look, knobs, said, squares):
    with pytest.raises(ValueError, match=said):
        perturbation(look(squares(), **knobs))


def test_a_decoder_that_does_nothing_is_refused(look, squares):
    class Blind(squares):
        def decode(self, z):
            return torch.zeros(len(z), 3, 32, 32)

    with pytest.raises(ValueError, match="changed no pixel"):
        perturbation(look(Blind()))
