"""Convergence: the order is the slope of log error against log steps, on a denoiser whose chain is known in closed form."""

import numpy as np
import pytest
import torch

from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.rng import rng_for
from percepta.samplers import SOLVERS, State, Step, adaptive, ddim, dpmpp_2m, euler, grid, heun, integrate, rk4, start

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(1, 3, 2, 2)
COUNTS = np.array([8, 16, 32, 64])


def slope(step, denoiser, times_of):
    errors, counts = [], COUNTS * (2 if step.order == 1 else 1)
    for count in counts:
        times = times_of(int(count))
        exact = X * denoiser.deviation(times[-1].item()) / denoiser.deviation(times[0].item())
        errors.append((integrate(step, denoiser, X, times) - exact).abs().max().item())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def even_levels(path, high, low):
    """Times at evenly spaced noise levels: where the ODE's own clock ticks evenly."""
    return lambda n: path.time_of_level(torch.linspace(high, low, n + 1, dtype=torch.float64))


@pytest.mark.parametrize(("make", "order"), [(euler, 1), (ddim, 1), (heun, 2), (rk4, 4)])
@pytest.mark.parametrize("path", [LinearBeta(), Cosine()])
def test_order_on_a_discrete_path_to_the_clean_end(make, order, path, gaussian):
    measured = slope(make(), gaussian(path), even_levels(path, 3.0, 0.0))
    assert measured == pytest.approx(order, abs=0.15 * order)
    assert make().order == order


@pytest.mark.parametrize(("make", "order"), [(euler, 1), (ddim, 1), (heun, 2), (rk4, 4)])
def test_order_on_a_flow_from_noise_to_the_clean_end(make, order, gaussian):
    measured = slope(make(), gaussian(Rectified()), lambda n: grid(Rectified(), n))
    assert measured == pytest.approx(order, abs=0.15 * order)


@pytest.mark.parametrize(("make", "order"), [(euler, 1), (heun, 2), (rk4, 4)])
def test_order_on_edm(make, order, gaussian):
    path = VarianceExploding()
    measured = slope(make(), gaussian(path), even_levels(path, 3.0, 0.0))
    assert measured == pytest.approx(order, abs=0.15 * order)


@pytest.mark.parametrize("path", [LinearBeta(), Rectified(), VarianceExploding()])
def test_order_of_dpmpp_in_log_snr(path, gaussian):
    def times(n):
        return path.time_of_level(torch.linspace(np.log(5.0), np.log(0.05), n + 1, dtype=torch.float64).exp())

    assert slope(dpmpp_2m(), gaussian(path), times) == pytest.approx(2, abs=0.3)
    assert dpmpp_2m().order == 2


def test_a_solver_that_forgets_falls_to_first_order(gaussian):
    """The order test can fail: the multistep method without its memory is DDIM."""
    step = dpmpp_2m()
    forgetful = Step("forgetful", lambda d, state, t, s, z: step(d, State(state.x), t, s, z)._replace(memory=()))
    path = Rectified()
    times = lambda n: path.time_of_level(torch.linspace(np.log(5.0), np.log(0.05), n + 1, dtype=torch.float64).exp())  # noqa: E731
    assert slope(forgetful, gaussian(path), times) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("path", [LinearBeta(), Cosine(), Rectified(), VarianceExploding()])
def test_adaptive_meets_its_tolerance(path, gaussian):
    denoiser = gaussian(path)
    start = path.t_max if isinstance(path, Rectified) else path.time_of_level(torch.tensor([20.0], dtype=torch.float64)).item()
    times = torch.tensor([start, path.t_min], dtype=torch.float64)
    exact = X * denoiser.deviation(path.t_min) / denoiser.deviation(start)
    loose = (integrate(adaptive(1e-3, 1e-3), denoiser, X, times) - exact).abs().max()
    tight = (integrate(adaptive(1e-9, 1e-9), denoiser, X, times) - exact).abs().max()
    assert tight < 1e-7
    assert tight < loose / 100
    assert loose < 0.5


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", [LinearBeta(), Cosine(), Rectified(), VarianceExploding()])
def test_every_sampler_reaches_the_data(name, path, gaussian):
    """From pure noise, N(0, 1/4) comes out on every path, within the error of 60 steps."""
    rng = rng_for(0, 0, 32, stream="sample")
    times = grid(path, 60) if name != "adaptive" else torch.tensor([path.t_max, 0.0], dtype=torch.float64)
    x = integrate(SOLVERS[name](), gaussian(path), start(path, times[0].item(), rng.normal("x_T", (3, 8, 8))), times, rng=rng)
    assert bool(x.isfinite().all())
    assert x.std().item() == pytest.approx(0.5, rel=0.2 if name == "ddpm" else 0.1)
