"""Mixing two estimates of x0 is mixing the means of the next step: Cas-DM's equations 8 to 11 and 17, on full and respaced grids."""

import pytest
import torch

from percepta.path import Cosine, LinearBeta
from percepta.samplers import grid, solver
from percepta.samplers.step import Bound, State

PATHS = [LinearBeta(), Cosine(4000)]
GRIDS = [None, 100, 10]  # None: every timestep of the path


class Says:
    """A denoiser that says one thing."""

    def __init__(self, path, x0):
        self.path, self.x0 = path, x0

    def __call__(self, x_t, t, cond=None):
        return self.x0


def drawn():
    """x_t, x0', eps', r per pixel, and the step's noise, float64."""
    g = torch.Generator().manual_seed(0)
    x, x0, eps, noise = (torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(4))
    return x, x0, eps, torch.rand(2, 1, 4, 4, generator=g, dtype=torch.float64) * 1.4 - 0.2, noise  # a raw r leaves [0, 1]


def steps(path, count):
    times = grid(path, path.num_steps if count is None else count).tolist()
    return [(times[i], times[i + 1]) for i in (1, len(times) // 3, len(times) // 2, len(times) - 3, len(times) - 2)]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("count", GRIDS)
@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
def test_a_step_of_the_mixture_is_the_mixture_of_steps(path, count, name, eta):
    """r + (1 - r) = 1, so the noise and x_t pass: with the same noise the law holds for whole steps, not for means only."""
    step, (x, x0, eps, r, noise) = solver(name, eta=eta), drawn()
    for t, s in steps(path, count):
        alpha, sigma = (f(torch.tensor([t], dtype=torch.float64)) for f in (path.alpha, path.sigma))
        star = (x - sigma * eps) / alpha
        mixed, prime, other = (
            step(Bound(Says(path, est)), State(x), t, s, noise if step.noisy else None).x
            for est in (r * x0 + (1 - r) * star, x0, star)
        )
        torch.testing.assert_close(mixed, r * prime + (1 - r) * other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("count", GRIDS)
def test_the_mean_is_the_printed_one(path, count):
    """Equations 8 to 11 (DDPM), with alpha_t = abar_t/abar_s of the grid that is sampled."""
    (x, x0, eps, r, _), step = drawn(), solver("ddpm")
    for t, s in steps(path, count):
        abar, before = (path.alpha(torch.tensor([u], dtype=torch.float64)) ** 2 for u in (t, s))
        a, beta = abar / before, 1 - abar / before
        mu_eps = x / a.sqrt() - (1 - a) / ((1 - abar).sqrt() * a.sqrt()) * eps  # 9
        mu_x0 = before.sqrt() * beta / (1 - abar) * x0 + a.sqrt() * (1 - before) / (1 - abar) * x  # 10
        star = (x - (1 - abar).sqrt() * eps) / abar.sqrt()  # 8
        got = step(Bound(Says(path, r * x0 + (1 - r) * star)), State(x), t, s, torch.zeros_like(x)).x
        torch.testing.assert_close(got, r * mu_x0 + (1 - r) * mu_eps, rtol=1e-9, atol=1e-9)  # 11


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_equation_17_holds_with_the_alpha_of_the_respaced_chain_only(path):
    """(x_t - sqrt(1 - abar_t) eps')/sqrt(alpha_t) is DDIM's sqrt(abar_s) x0*; with the training chain's alpha_t it is not."""
    (x, _, eps, _, _), step = drawn(), solver("ddim")
    for t, s in steps(path, 100)[1:3]:
        at = [torch.tensor([u], dtype=torch.float64) for u in (t, s, t - 1 / path.num_steps)]
        abar, before, one_less = (path.alpha(u) ** 2 for u in at)
        star = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
        got = step(Bound(Says(path, star)), State(x), t, s).x
        noise = (1 - before).sqrt() * eps

        def mean(alpha, x=x, abar=abar):
            return (x - (1 - abar).sqrt() * eps) / alpha.sqrt()

        torch.testing.assert_close(got, mean(abar / before) + noise, rtol=1e-9, atol=1e-9)
        assert float((got - mean(abar / one_less) - noise).abs().max()) > 1e-2
