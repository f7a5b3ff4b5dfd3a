"""Every spacing dialect is a list that somebody published: the lists themselves."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler

from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.samplers import as_grid, grid

VP = LinearBeta()


def timesteps(times, num_steps=1000):
    k = times[:-1] * num_steps - 1
    assert torch.allclose(k, k.round(), atol=1e-9)
    return k.round().long().tolist()


@pytest.mark.parametrize(
    ("spacing", "steps", "expected"),
    [
        ("leading", 5, [800, 600, 400, 200, 0]),
        ("leading", 15, [66 * i for i in reversed(range(15))]),
        ("leading-code", 15, [66 * i for i in reversed(range(16))]),
        ("leading-code", 5, [800, 600, 400, 200, 0]),
        ("linspace", 5, [999, 749, 500, 250, 0]),
        ("trailing", 5, [999, 799, 599, 399, 199]),
        ("quadratic", 5, [800, 450, 200, 50, 0]),
        ("leading", 1, [0]),
        ("trailing", 1, [999]),
    ],
)
def test_published_lists(spacing, steps, expected):
    times = grid(VP, steps, spacing)
    assert timesteps(times) == expected
    assert times.dtype == torch.float64
    assert times[-1] == 0


@pytest.mark.parametrize("steps", [2, 5, 7, 10, 15, 20, 50, 100, 333, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_lists_are_those_of_diffusers(spacing, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps.tolist()[:steps]  # at some counts a float range gives theirs one entry too many
    assert timesteps(grid(VP, steps, spacing)) == theirs


def test_offset_is_that_of_stable_diffusion():
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(50)
    assert timesteps(grid(VP, 50, "leading", offset=1)) == scheduler.timesteps.tolist()
    assert timesteps(grid(VP, 50, "leading", offset=1))[0] == 981


def test_leading_gives_exactly_as_many_steps_as_asked():
    for steps in range(1, 200):
        assert len(grid(VP, steps, "leading")) == steps + 1


def test_ddim100_of_4000_steps_starts_at_3960():
    assert timesteps(grid(Cosine(4000), 100, "leading"), 4000)[:2] == [3960, 3920]


@pytest.mark.parametrize("steps", [5, 10, 15, 20, 50])
def test_quadratic_is_the_published_formula_and_visits_a_repeated_timestep_once(steps):
    listed = [int(k) for k in np.linspace(0, np.sqrt(800), steps) ** 2]
    assert (len(set(listed)) < steps) == (steps == 50)
    assert timesteps(grid(VP, steps, "quadratic")) == sorted(set(listed), reverse=True)


def test_karras_is_equation_5_and_that_of_diffusers():
    times = grid(VarianceExploding(), 18)
    assert len(times) == 19
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert torch.allclose(times[:-1], expected, rtol=1e-12)
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(18)
    assert torch.allclose(times.float(), scheduler.sigmas, rtol=1e-5)


def test_levels_on_a_discrete_path():
    times = grid(VP, 10, "karras")
    levels = VP.level(times[:-1])
    assert torch.allclose(levels[[0, -1]], VP.level(torch.tensor([1.0, 1e-3], dtype=torch.float64)))
    assert torch.allclose(torch.diff(levels ** (1 / 7)), torch.diff(levels ** (1 / 7))[0], rtol=1e-6)
    log = VP.level(grid(VP, 10, "logsnr")[:-1]).log()
    assert torch.allclose(torch.diff(log), torch.diff(log)[0], rtol=1e-6)


def test_flow_grids():
    assert torch.allclose(grid(Rectified(), 4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    shifted = grid(Rectified(), 4, "shifted", shift=3.0)
    assert torch.allclose(shifted, torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("path", "steps", "spacing", "options", "message"),
    [
        (VP, 10, "uniform", {}, "does not suit the path LinearBeta"),
        (VP, 10, "ddim", {}, "use one of: leading"),
        (Rectified(), 10, "karras", {}, "does not suit"),
        (VarianceExploding(), 10, "leading", {}, "does not suit"),
        (VP, 0, None, {}, "steps must be 1 or more"),
        (VP, 1001, None, {}, "at most 1000"),
        (VP, 1, "linspace", {}, "use 'trailing'"),
        (VP, 1000, "leading", {"offset": 1}, "visits timestep 1000"),
    ],
)
def test_refusals(path, steps, spacing, options, message):
    with pytest.raises(ValueError, match=message):
        grid(path, steps, spacing, **options)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (torch.tensor([0.5, 0.1]), "float64"),
        (torch.tensor([0.5], dtype=torch.float64), "at least two"),
        (torch.tensor([0.1, 0.5], dtype=torch.float64), "decreases strictly"),
        (torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64), "decreases strictly"),
        (torch.tensor([999.0, 0.0], dtype=torch.float64), "path.time_of"),
        (torch.tensor([0.5, -0.1], dtype=torch.float64), "lie in"),
    ],
)
def test_a_grid_by_hand_is_checked(times, message):
    with pytest.raises(ValueError, match=message):
        as_grid(VP, times)
