"""Laws of the formulations: the perfect output recovers x0, losses translate, preconditioning has EDM's limits, borders are checked."""

import json

import pytest
import torch
from torch import nn

from percepta.formulation import (
    EDM,
    FLOW,
    OUTPUTS,
    SIGMA_DATA,
    TIMES,
    Denoiser,
    Formulation,
    LogitNormalTimes,
    LogNormalTimes,
    UniformTimes,
    as_x0_hat,
    expand,
    formulation_from_config,
    noise_of,
)  # fmt: skip
from percepta.path import BetaTable, Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.rng import rng_for

PATHS = [LinearBeta(), Cosine(4000), BetaTable((0.1, 0.3, 0.6)), Rectified(), VarianceExploding()]
FORMULATIONS = [
    Formulation(path, output)
    for path in PATHS
    for output in OUTPUTS
    if not (output == "velocity" and isinstance(path, Rectified | VarianceExploding))
    and (output != "edm" or isinstance(path, VarianceExploding))
    if not (output == "noise" and isinstance(path, Rectified))  # alpha is 0 at t = 1
]


def name(f):
    return f"{type(f.path).__name__}-{f.output}"


def batch(formulation, rows=16):
    rng = rng_for(0, 0, rows)
    return formulation.noised(rng.normal("x0", (2, 3, 3), torch.float64) / 2, rng)


def test_the_table_of_outputs_is_tried_whole():
    assert {f.output for f in FORMULATIONS} == set(OUTPUTS) == {"clean", "noise", "velocity", "flow", "edm"}
    assert len(FORMULATIONS) == 3 * 4 + 2 + 4


@pytest.mark.parametrize("f", FORMULATIONS, ids=name)
def test_the_perfect_output_recovers_x0(f):
    noised = batch(f)
    c = f.coefficients(noised.t)
    x0 = expand(c.c_skip, noised.x_t) * noised.x_t + expand(c.c_out, noised.x_t) * f.target(noised)
    assert torch.allclose(x0, noised.x0, atol=1e-9)
    assert torch.allclose(as_x0_hat(f.output, f.target(noised), noised.x_t, noised.t, f.path), noised.x0, atol=1e-9)


@pytest.mark.parametrize("f", FORMULATIONS, ids=name)
def test_targets_are_what_the_papers_say(f):
    noised = batch(f)
    x0, eps, t, x_t = noised
    alpha, sigma = expand(f.path.alpha(t), x0), expand(f.path.sigma(t), x0)
    d_alpha, d_sigma = (expand(v, x0) for v in f.path.velocity(t))
    expected = {
        "clean": x0,
        "noise": eps,
        "velocity": alpha * eps - sigma * x0,
        "flow": d_alpha * x0 + d_sigma * eps,
        "edm": (x0 - SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2) * x_t) * (sigma**2 + SIGMA_DATA**2).sqrt() / (sigma * SIGMA_DATA),
    }[f.output]
    tolerance = 1e-6 if f.output == "noise" else 1e-8
    assert torch.allclose(f.target(noised), expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(noise_of(x0, x_t, t, f.path), eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", [LinearBeta(), Cosine(), VarianceExploding()])
def test_eps_mse_is_x0_mse_weighted_with_the_snr(path):
    """||eps - eps_hat||^2 = SNR ||x0 - x0_hat||^2, for any estimate whatever."""
    f = Formulation(path, "noise")
    noised = batch(f)
    eps_hat = noised.eps + rng_for(1, 0, 16).normal("error", (2, 3, 3), torch.float64)
    x0_hat = as_x0_hat("noise", eps_hat, noised.x_t, noised.t, path)
    in_eps = ((noised.eps - eps_hat) ** 2).flatten(1).mean(1)
    in_x0 = ((noised.x0 - x0_hat) ** 2).flatten(1).mean(1)
    assert torch.allclose(in_eps, path.snr(noised.t) * in_x0, rtol=1e-5)


def test_v_mse_is_x0_mse_weighted_with_snr_plus_1():
    f = Formulation(LinearBeta(), "velocity")
    noised = batch(f)
    v_hat = f.target(noised) + rng_for(1, 0, 16).normal("error", (2, 3, 3), torch.float64)
    x0_hat = as_x0_hat("velocity", v_hat, noised.x_t, noised.t, f.path)
    in_v = ((f.target(noised) - v_hat) ** 2).flatten(1).mean(1)
    assert torch.allclose(in_v, (f.path.snr(noised.t) + 1) * ((noised.x0 - x0_hat) ** 2).flatten(1).mean(1), rtol=1e-8)


def test_edm_has_unit_variance_in_and_out_at_every_level():
    t = torch.logspace(-3, 2.5, 50, dtype=torch.float64)
    c = EDM.coefficients(t)
    assert torch.allclose(c.c_in**2 * (SIGMA_DATA**2 + t**2), torch.ones_like(t), rtol=1e-14)
    # Var(target) = ((1 - c_skip)^2 sigma_data^2 + c_skip^2 t^2)/c_out^2
    assert torch.allclose(((1 - c.c_skip) ** 2 * SIGMA_DATA**2 + c.c_skip**2 * t**2) / c.c_out**2, torch.ones_like(t), rtol=1e-9)


def test_edm_limits_in_float64():
    low, high = (EDM.coefficients(torch.tensor([t], dtype=torch.float64)) for t in (EDM.path.t_min, EDM.path.t_max))
    assert low.c_skip.item() == pytest.approx(1 - (0.002 / 0.5) ** 2, rel=1e-9)  # almost clean: the input passes through
    assert low.c_out.item() == pytest.approx(0.002, rel=1e-4)
    assert low.c_in.item() == pytest.approx(2, rel=1e-4)
    assert high.c_skip.item() == pytest.approx((0.5 / 80) ** 2, rel=1e-4)  # almost noise: the network says it all
    assert high.c_out.item() == pytest.approx(0.5, rel=1e-4)
    assert high.c_in.item() == pytest.approx(1 / 80, rel=1e-4)
    assert (low.c_time.item(), high.c_time.item()) == pytest.approx(
        (torch.tensor(0.002).log().item() / 4, torch.tensor(80.0).log().item() / 4)
    )


@pytest.mark.parametrize("f", [*FORMULATIONS, FLOW, EDM, Formulation(Rectified(), "flow", LogitNormalTimes(0.5, 2.0))], ids=name)
def test_configs_come_back(f):
    again = formulation_from_config(json.loads(json.dumps(f.to_config())))
    assert again == f


def test_times_are_drawn_as_said():
    rng = rng_for(0, 0, 20000)
    path = LinearBeta()
    k = UniformTimes().draw(path, rng) * 1000 - 1
    assert torch.allclose(k, k.round(), atol=1e-9)
    assert (round(k.min().item()), round(k.max().item())) == (0, 999)
    assert torch.bincount((k.round() / 100).floor().long()).float().std() < 80
    log = LogNormalTimes().draw(VarianceExploding(), rng).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((-1.2, 1.2), abs=0.03)
    t = LogitNormalTimes().draw(Rectified(), rng)
    assert (t.logit().mean().item(), t.logit().std().item()) == pytest.approx((0, 1), abs=0.03)
    u = UniformTimes().draw(Rectified(), rng)
    assert (u.mean().item(), u.std().item()) == pytest.approx((0.5, 12**-0.5), abs=0.01)
    assert all(v.dtype == torch.float64 and v.device.type == "cpu" for v in (k, log, t, u))
    assert set(TIMES) == {"uniform", "lognormal", "logit-normal"}


def test_noising_is_reproducible_by_row():
    f, x0 = Formulation(LinearBeta()), rng_for(0, 0, 12).normal("x0", (1, 2, 2))
    whole = f.noised(x0, rng_for(3, 0, 12))
    part = f.noised(x0[5:9], rng_for(3, 5, 4))
    assert all(torch.equal(a[5:9], b) for a, b in zip(whole, part, strict=True))
    given = f.noised(x0, rng_for(3, 0, 12), torch.full((12,), 0.5, dtype=torch.float64))
    assert torch.equal(given.eps, whole.eps)
    assert bool((given.t == 0.5).all())


class Raw(nn.Module):
    """Puts out `channels` channels, in a precision of its own, and remembers what it saw."""

    def __init__(self, channels=2, dtype=None, size=None):
        super().__init__()
        self.channels, self.dtype, self.size = channels, dtype, size

    def forward(self, x, time, cond=None):
        self.seen = x, time
        out = x.mean(1, keepdim=True).repeat(1, self.channels, 1, 1)
        out = out if self.size is None else out[..., : self.size]
        return out.to(self.dtype or x.dtype)


def test_a_denoiser_calls_the_network_as_the_formulation_says():
    network = Raw()
    denoiser = Denoiser(network, EDM)
    noised = batch(EDM)
    x0_hat = denoiser(noised.x_t, noised.t)
    x, time = network.seen
    assert torch.allclose(x, noised.x_t / expand((noised.t**2 + 0.25).sqrt(), noised.x_t))
    assert time.dtype == torch.float32
    assert torch.allclose(time.double(), noised.t.log() / 4, rtol=1e-6)
    assert torch.allclose(x0_hat, as_x0_hat("edm", x.mean(1, keepdim=True).repeat(1, 2, 1, 1), noised.x_t, noised.t, EDM.path))


def test_arithmetic_outside_a_bfloat16_network_is_float32():
    f = Formulation(LinearBeta())
    noised = f.noised(rng_for(0, 0, 8).normal("x0", (2, 3, 3)), rng_for(0, 0, 8))
    x0_hat = Denoiser(Raw(dtype=torch.bfloat16), f)(noised.x_t, noised.t)
    raw = noised.x_t.mean(1, keepdim=True).repeat(1, 2, 1, 1).bfloat16().float()
    assert x0_hat.dtype == torch.float32
    assert torch.equal(x0_hat, Denoiser(Fixed(raw), f)(noised.x_t, noised.t))


class Fixed(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, time, cond=None):
        return self.out


def test_further_channels_come_out_beside():
    f = Formulation(LinearBeta())
    noised = batch(f)
    x0_hat, taps = Denoiser(Raw(4), f).full(noised.x_t, noised.t)
    assert x0_hat.shape == noised.x_t.shape == taps["output"].shape
    assert taps["extra"].shape == noised.x_t.shape
    assert set(Denoiser(Raw(2), f).full(noised.x_t, noised.t)[1]) == {"output"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Formulation(LinearBeta(), "epsilon"), "known: clean, noise"),
        (lambda: Formulation(Rectified(), "velocity"), "for a flow use the output 'flow'"),
        (lambda: Formulation(LinearBeta(), "edm"), "VarianceExploding"),
        (lambda: Formulation(LinearBeta()).noised(torch.zeros(2, 3, 4, 4), rng_for(0, 0, 3)), "for 3 samples, the batch has 2"),
        (lambda: Denoiser(Raw(), FLOW)(torch.zeros(2, 2, 4, 4), torch.zeros(3, dtype=torch.float64)), "one time per sample"),
        (lambda: Denoiser(Raw(), FLOW)(torch.zeros(2, 2, 4, 4), torch.zeros(2, dtype=torch.float64, device="meta")), "on the CPU"),
        (lambda: Denoiser(Raw(1), FLOW)(torch.zeros(2, 2, 4, 4), torch.ones(2, dtype=torch.float64)), "at least 2 output channels"),
        (lambda: Denoiser(Raw(size=3), FLOW)(torch.zeros(2, 2, 4, 4), torch.ones(2, dtype=torch.float64)), "the input's size"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
