"""Laws of DDIM and DDPM: equation 17 under respacing, what eta means, where noise stops, what is refused."""

import pytest
import torch

from percepta.formulation import Denoiser, Formulation, noise_of
from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.rng import rng_for
from percepta.samplers import Bound, State, ddim, ddpm, grid, integrate

RNG = rng_for(0, 0, 2, stream="sample")
X = RNG.normal("x", (3, 4, 4), torch.float64)


def test_equation_17_of_casdm_holds_with_the_respaced_alpha_and_only_so(gaussian):
    """(x_t - sqrt(1 - abar_t) eps)/sqrt(alpha_t) is sqrt(abar_s) x0 if alpha_t = abar_t/abar_s over the whole stride."""
    path = Cosine(4000)
    denoiser, times = gaussian(path), grid(path, 100, "leading")
    worst, wrong = 0.0, 0.0
    for t, s in zip(times[1:-1].tolist(), times[2:].tolist(), strict=True):
        k, j = round(t * 4000), round(s * 4000)
        eps = noise_of(denoiser(X, torch.full((2,), t, dtype=torch.float64)), X, torch.full((2,), t, dtype=torch.float64), path)
        ours = ddim()(Bound(denoiser), State(X), t, s).x
        abar_t, abar_s = path.abar[k], path.abar[j]

        def printed(alpha, eps=eps, abar_t=abar_t, abar_s=abar_s):
            return (X - (1 - abar_t).sqrt() * eps) / alpha.sqrt() + (1 - abar_s).sqrt() * eps

        worst = max(worst, (ours - printed(abar_t / abar_s)).abs().max().item())
        wrong = max(wrong, (ours - printed(1 - path.betas[k - 1])).abs().max().item())
    assert worst < 1e-13
    assert wrong > 5e-3


def test_ancestral_sampling_is_ddim_with_eta_1(gaussian):
    for path in (LinearBeta(), Cosine(), Rectified(), VarianceExploding()):
        times = grid(path, 12)[1:]
        a = integrate(ddpm(), gaussian(path), X, times, rng=RNG)
        assert torch.allclose(a, integrate(ddim(1.0), gaussian(path), X, times, rng=RNG), atol=1e-10)


def test_the_variance_of_a_stochastic_step_is_the_posterior(gaussian):
    path, (t, s) = LinearBeta(), (0.5, 0.25)
    for eta in (0.3, 1.0):
        step = ddim(eta)
        noise = torch.ones_like(X)
        sig = (step(Bound(gaussian(path)), State(X), t, s, noise).x - step(Bound(gaussian(path)), State(X), t, s, 0 * noise).x)[
            0, 0, 0, 0
        ]
        abar_t, abar_s = path.abar[500], path.abar[250]
        assert torch.isclose(sig, eta * ((1 - abar_s) / (1 - abar_t)).sqrt() * (1 - abar_t / abar_s).sqrt())


@pytest.mark.parametrize("step", [ddim(1.0), ddpm(), ddpm("fixed_large")])
def test_no_noise_enters_the_last_step(step, gaussian):
    bound = Bound(gaussian(LinearBeta()))
    assert torch.equal(step(bound, State(X), 0.3, 0.0, X).x, step(bound, State(X), 0.3, 0.0, -X).x)
    assert not torch.equal(step(bound, State(X), 0.3, 0.1, X).x, step(bound, State(X), 0.3, 0.1, -X).x)


class Wide(torch.nn.Module):
    """Puts out the clean estimate x/2 and a learned variance of one value."""

    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, x, time, cond=None):
        return torch.cat([x / 2, torch.full_like(x, self.v)], 1)


def test_a_learned_variance_lies_between_the_fixed_ones():
    for v, variance in ((1.0, "fixed_large"), (-1.0, "fixed_small")):
        denoiser = Denoiser(Wide(v), Formulation(LinearBeta(), "clean"))
        times = grid(LinearBeta(), 10)
        learned = integrate(ddpm("learned"), denoiser, X, times, rng=RNG)
        assert torch.allclose(learned, integrate(ddpm(variance), denoiser, X, times, rng=RNG), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: ddim(-0.1), "eta must be"),
        (lambda d: ddim(clip=(1, -1)), "clip is"),
        (lambda d: ddpm("large"), "known: fixed_small"),
        (lambda d: integrate(ddpm("learned"), d, X, grid(d.path, 3), rng=RNG), "fixed_small"),
        (lambda d: integrate(ddpm(), d, X, grid(d.path, 3)), "stochastic"),
        (lambda d: integrate(ddpm(), d, X, grid(d.path, 3), rng=RNG.select([0])), "for 1 samples, the batch has 2"),
        (lambda d: integrate(ddim(3.0), d, X, grid(d.path, 10), rng=RNG), "smaller eta"),
        (lambda d: ddpm()(Bound(d), State(X), 0.5, 0.2), "takes noise in every step"),
    ],
)
def test_refusals(call, message, gaussian):
    with pytest.raises(ValueError, match=message):
        call(gaussian(LinearBeta()))


def test_a_network_without_variance_channels_is_refused(denoiser):
    with pytest.raises(ValueError, match="6 output channels"):
        integrate(ddpm("learned"), denoiser(), torch.zeros(2, 3, 8, 8), grid(LinearBeta(), 3), rng=RNG)
