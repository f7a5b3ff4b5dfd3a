"""Weights are laws: every plain loss of an output convention is the weighted squared error of x0_hat; each named one has a closed form."""

import pytest
import torch
from diffusers import UNet2DModel

from percepta.estimate import Batch, Denoise, Estimate
from percepta.formulation import EDM, FLOW, Denoiser, Formulation, Noised
from percepta.networks import adapt
from percepta.objectives import WEIGHTS, Denoising, Term, weight_named
from percepta.path import Cosine, LinearBeta, VarianceExploding
from percepta.rng import rng_for


def number(x: torch.Tensor) -> float:
    return x.detach().item()


PLAIN = {
    "x0, cosine": (Formulation(Cosine(), "clean"), "clean"),
    "eps, linear": (Formulation(LinearBeta(), "noise"), "noise"),
    "eps, cosine": (Formulation(Cosine(), "noise"), "noise"),
    "v, cosine": (Formulation(Cosine(), "velocity"), "velocity"),
    "flow, rectified": (FLOW, "flow"),
    "flow, linear": (Formulation(LinearBeta(), "flow"), "flow"),
    "edm": (EDM, "edm"),
}


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet2DModel(
            sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        return adapt(model).double()


@pytest.mark.parametrize("name", PLAIN)
def test_the_squared_error_of_a_networks_output_is_the_weighted_squared_error_of_x0(network, name):
    formulation, weight = PLAIN[name]
    x0 = torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    est = Denoise(Denoiser(network, formulation))(Batch(x0), rng_for(0, 0, 6))
    expected = ((est.taps["output"] - formulation.target(est.noised)) ** 2).flatten(1).mean(1)
    found = weight_named(weight)(est) * Denoising()(est)
    assert torch.allclose(found, expected, rtol=1e-9), (found / expected - 1).abs().max()
    assert number(Term("loss", Denoising(), weight=weight_named(weight))(est)) == pytest.approx(number(expected.mean()), rel=1e-9)


def test_eps_mse_is_snr_times_x0_mse(network):
    """In so many words: |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2."""
    x0 = torch.rand(4, 3, 8, 8, dtype=torch.float64) * 2 - 1
    est = Denoise(Denoiser(network, Formulation(Cosine(), "noise")))(Batch(x0), rng_for(3, 0, 4))
    eps_mse = ((est.noised.eps - est.taps["output"]) ** 2).flatten(1).mean(1)
    assert torch.allclose(eps_mse, est.snr * ((est.x0 - est.x0_hat) ** 2).flatten(1).mean(1), rtol=1e-9)


def at_snr(snr):
    """An estimate whose samples have these signal-to-noise ratios."""
    path = VarianceExploding(1e-6, 1e6)
    t = torch.tensor(snr, dtype=torch.float64) ** -0.5
    x = torch.zeros(len(snr), 1, 2, 2)
    return Estimate(x, x, True, Noised(x, x, t, x), path)


@pytest.mark.parametrize(
    ("name", "gamma", "expected"),
    [
        ("clean", None, [1.0, 1.0, 1.0]),
        ("noise", None, [0.25, 4.0, 100.0]),
        ("velocity", None, [1.25, 5.0, 101.0]),
        ("min-snr", None, [0.25, 4.0, 5.0]),
        ("min-snr", 2.0, [0.25, 2.0, 2.0]),
        ("soft-min-snr", None, [0.25 * 5 / 5.25, 4 * 5 / 9, 100 * 5 / 105]),
        ("soft-min-snr", 1.0, [0.25 / 1.25, 4 / 5, 100 / 101]),
        ("max-snr", None, [1.0, 4.0, 100.0]),
        ("p2", None, [0.25 / 1.25, 4 / 5, 100 / 101]),
        ("p2", 0.5, [0.25 / 1.25**0.5, 4 / 5**0.5, 100 / 101**0.5]),
        ("edm", None, [(4 + 0.25) / (4 * 0.25), (0.25 + 0.25) / (0.25 * 0.25), (0.01 + 0.25) / (0.01 * 0.25)]),
        ("flow", None, [0.25, 4.0, 100.0]),  # with alpha = 1 and sigma = t the velocity is eps
    ],
)
def test_closed_forms(name, gamma, expected):
    found = weight_named(name, gamma)(at_snr([0.25, 4.0, 100.0]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_every_weight_has_a_closed_form_here():
    assert len(WEIGHTS) == 9


def test_unknown_weights_and_gammas_are_errors():
    with pytest.raises(ValueError, match="unknown weight 'snr'; known: clean"):
        weight_named("snr")
    with pytest.raises(ValueError, match="'noise' has no gamma"):
        weight_named("noise", 5.0)
