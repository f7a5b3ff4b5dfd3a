"""Laws of the paths: knots are DDPM's, the velocity is the derivative, the level can be inverted, configs come back."""

import json
import math

import pytest
import torch
from diffusers import DDPMScheduler

from percepta.path import PATHS, BetaTable, Cosine, LinearBeta, Rectified, VarianceExploding, path_from_config

DISCRETE = [LinearBeta(), LinearBeta(4000), LinearBeta(beta_start=0.00085, beta_end=0.012, scaled=True), Cosine(), Cosine(4000),
            BetaTable((0.1, 0.2, 0.5, 0.9))]  # fmt: skip
ALL = [*DISCRETE, Rectified(), VarianceExploding()]


def name(path):
    return f"{type(path).__name__}-{getattr(path, 'num_steps', '')}"


def times(path, count=101):
    """Times off the knots, inside the path."""
    low, high = path.t_min, path.t_max
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + math.pi / 10) / (count + 0.5)


@pytest.mark.parametrize(
    ("path", "schedule"),
    [
        (LinearBeta(), {"beta_schedule": "linear"}),
        (LinearBeta(4000), {"beta_schedule": "linear", "num_train_timesteps": 4000}),
        (
            LinearBeta(beta_start=0.00085, beta_end=0.012, scaled=True),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (Cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (Cosine(4000), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 4000}),
    ],
)
def test_tables_are_those_of_diffusers(path, schedule):
    theirs = DDPMScheduler(**schedule)
    assert torch.allclose(path.betas.float(), theirs.betas, rtol=2e-5, atol=1e-8)
    assert torch.allclose(path.abar[1:].float(), theirs.alphas_cumprod, rtol=5e-4, atol=1e-7)
    assert path.abar.dtype == torch.float64


@pytest.mark.parametrize("path", DISCRETE, ids=name)
def test_knots_are_ddpms_timesteps(path):
    k = torch.arange(path.num_steps)
    t = path.time_of(k)
    assert torch.allclose(path.alpha(t) ** 2, torch.cumprod(1 - path.betas, 0), rtol=1e-10)
    assert torch.allclose(path.network_time(t), k.double(), atol=1e-9)
    assert path.time_of([-1]).item() == 0
    clean = torch.zeros(1, dtype=torch.float64)
    assert (path.alpha(clean), path.sigma(clean)) == (torch.ones(1), clean)
    assert path.t_min == 1 / path.num_steps
    assert path.t_max == 1


@pytest.mark.parametrize("path", DISCRETE, ids=name)
def test_discrete_paths_preserve_variance(path):
    t = times(path)
    assert torch.allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), atol=1e-14)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_velocity_is_the_derivative(path):
    t = times(path).requires_grad_()
    for function, derivative in zip((path.alpha, path.sigma), path.velocity(t), strict=True):
        (graph,) = torch.autograd.grad((function(t) + 0 * t).sum(), t)
        assert torch.allclose(derivative, graph, rtol=1e-9, atol=1e-12)
        h = 1e-7 * path.t_max
        with torch.no_grad():
            slope = (function(t + h) - function(t - h)) / (2 * h)
        assert torch.allclose(derivative, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_noise_grows_with_time(path):
    t = times(path)
    assert bool((path.level(t).diff() > 0).all())
    assert bool((path.snr(t).diff() < 0).all())
    assert torch.allclose(path.snr(t), path.level(t) ** -2, rtol=1e-12)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_level_can_be_inverted(path):
    t = times(path)
    assert torch.allclose(path.time_of_level(path.level(t)), t, rtol=1e-8, atol=1e-12)
    assert path.time_of_level(torch.zeros(1, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("path", ALL, ids=name)
def test_configs_come_back(path):
    again = path_from_config(json.loads(json.dumps(path.to_config())))
    assert again == path
    assert hash(again) == hash(path)
    assert type(again) is type(path)


def test_all_paths_are_known_by_name():
    assert set(PATHS) == {"LinearBeta", "Cosine", "BetaTable", "Rectified", "VarianceExploding"} == {type(p).__name__ for p in ALL}


def test_published_endpoints():
    assert LinearBeta().betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    assert Cosine().betas.max().item() == pytest.approx(0.999)
    assert Cosine().abar[501].item() == pytest.approx(
        math.cos((0.501 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    )
    assert Cosine(4000).abar[3961].item() == pytest.approx(2.3e-4, rel=0.05)  # methods: where "ddim100" of 4000 begins
    one = torch.ones(1, dtype=torch.float64)
    assert (Rectified().alpha(one).item(), Rectified().sigma(one).item(), Rectified().network_time(one).item()) == (0, 1, 1000)
    assert VarianceExploding().network_time(one * math.e).item() == pytest.approx(0.25)


def test_a_zero_terminal_snr_stays_finite():
    path = BetaTable((0.1, 0.5, 1.0))
    end = torch.ones(1, dtype=torch.float64)
    values = [path.alpha(end), path.sigma(end), path.level(end), *path.velocity(end)]
    assert all(bool(v.isfinite().all()) for v in values)
    assert path.alpha(end).item() < 1e-15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearBeta().alpha(torch.tensor([500.0], dtype=torch.float64)), r"path\.time_of"),
        (lambda: LinearBeta().sigma(torch.tensor([-0.1], dtype=torch.float64)), "lie in"),
        (lambda: LinearBeta().sigma(torch.tensor([float("nan")], dtype=torch.float64)), "lie in"),
        (lambda: BetaTable((0.1, 0.0)).abar, "betas must be"),
        (lambda: BetaTable((0.1, 1.5)).abar, "range 0.1 to 1.5"),
        (lambda: path_from_config({"name": "Sigmoid"}), "known: LinearBeta"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
