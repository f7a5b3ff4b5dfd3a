"""Walks between noises: the ends are the ends, the length is kept, and the images at the ends are those the sampler makes."""

import math

import pytest
import torch

from percepta.path import LinearBeta, Rectified
from percepta.rng import rng_for
from percepta.samplers import Drawn, sample_images
from percepta.samplers.interpolation import images_of_noise, slerp


def test_the_ends_and_equal_angles() -> None:
    a, b = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    walk = slerp(a, b, torch.linspace(0, 1, 4))
    angles = [0, math.pi / 6, math.pi / 3, math.pi / 2]
    expected = 2 * torch.tensor([[math.cos(t), math.sin(t)] for t in angles], dtype=torch.float64)
    torch.testing.assert_close(walk, expected, rtol=1e-6, atol=1e-6)


def test_noises_keep_their_length_where_a_mean_would_lose_it() -> None:
    a, b = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    walk = slerp(a, b, torch.linspace(0, 1, 11))
    assert walk.dtype == a.dtype and torch.equal(walk[0], a) and torch.equal(walk[-1], b)
    assert (walk.flatten(1).std(1) - 1).abs().max() < 0.06
    assert ((a + b) / 2).std() < 0.75


@pytest.mark.parametrize("scale", [1.0, 3.0, -1.0])
def test_noises_of_one_direction_have_no_walk(scale: float) -> None:
    a = torch.randn(12, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="two different noises"):
        slerp(a, scale * a, torch.linspace(0, 1, 3))


@pytest.mark.parametrize(("path", "sampler"), [(LinearBeta(), "ddim"), (LinearBeta(), "heun"), (Rectified(), "heun")])
def test_given_noise_makes_the_image_that_drawn_noise_makes(path, sampler: str, gaussian) -> None:
    how, rng, shape = Drawn(sampler, 5), rng_for(3, 0, 4, stream="sample"), (3, 4, 4)
    denoiser = gaussian(path)
    given = images_of_noise(denoiser, how, rng.normal("x_T", shape))
    assert torch.equal(given, sample_images(denoiser, how, shape, rng))
    assert given.std() > 0.05


@pytest.mark.parametrize("how", [Drawn("ddpm", 5), Drawn("ddim", 5, eta=1.0), Drawn("DPMSolverMultistepScheduler", 5)])
def test_samplers_with_noise_of_their_own_are_refused(how: Drawn, gaussian) -> None:
    with pytest.raises(ValueError, match="adds none"):
        images_of_noise(gaussian(LinearBeta()), how, torch.zeros(1, 3, 4, 4))


def test_strips_of_a_run_begin_and_end_with_its_samples(tmp_path, monkeypatch, capsys) -> None:
    """percepta report --strips: the ends of a walk are images of the run's own seed, and the page shows the figure."""
    import numpy as np
    from PIL import Image

    from percepta.cli import main
    from percepta.images import to_uint8
    from percepta.sampling import Drawing, Job

    run = tmp_path / "run"
    flags = (
        "--data shapes:length=8 --size 8 --network unet-pocket --steps 1 --batch 2 --sample-every 1 --sample-num 2 --sample-steps 2"
    )
    assert main(["train", "ddpm", *flags.split(), "--device", "cpu", "--out", str(run)]) == 0
    assert main(["report", str(run), "--strips", "1", "--device", "cpu", "--out", str(tmp_path / "r.html")]) == 0
    strip = np.asarray(Image.open(run / "figures" / "strips.png"))
    ends = [strip[:64, :64][::8, ::8], strip[:64, -64:][::8, ::8]]
    drawing = Drawing(Job(source=run, num=2, steps=2, device="cpu"))
    walk = to_uint8(drawing.walk(0, 1))
    assert len(walk) == 11 and np.array_equal(ends[0], walk[0]) and np.array_equal(ends[1], walk[-1])
    # one image at a time or eleven: the same but for the last bits of a matrix product
    assert np.abs(walk[0].astype(int) - to_uint8(drawing.images(0, 1))[0]).max() <= 1
    assert "Interpolation strips" in (tmp_path / "r.html").read_text()
