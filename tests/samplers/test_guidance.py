"""Guidance is one formula in every output space, on all channels or some, at all levels or some."""

import pytest
import torch
from torch import nn

from percepta.formulation import EDM, FLOW, Denoiser, Formulation
from percepta.path import LinearBeta
from percepta.rng import rng_for
from percepta.samplers import Bound, State, ddpm, guided

X = rng_for(0, 0, 3).normal("x", (4, 2, 2), torch.float64)
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
COND, NULL = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


class Linear(nn.Module):
    """A network whose output depends on its condition; counts calls and rows."""

    def __init__(self, wide=False):
        super().__init__()
        self.rows = []
        self.wide = wide

    def forward(self, x, time, cond=None):
        cond = cond if isinstance(cond, torch.Tensor) else cond["text"][:, 0]
        self.rows.append(len(x))
        out = torch.tanh(x * (1 + cond.reshape(-1, 1, 1, 1))) + cond.reshape(-1, 1, 1, 1)
        return torch.cat([out, out * 0 + cond.reshape(-1, 1, 1, 1) / 4], 1) if self.wide else out


FORMULATIONS = [Formulation(LinearBeta(), kind) for kind in ("clean", "noise", "velocity", "flow")] + [FLOW, EDM]


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=lambda f: f"{type(f.path).__name__}-{f.output}")
def test_guiding_x0_is_guiding_the_raw_output(formulation):
    denoiser = Denoiser(Linear(), formulation)
    with_cond, without = denoiser.full(X, T, COND)[1]["output"], denoiser.full(X, T, NULL.expand(3))[1]["output"]
    c = formulation.coefficients(T)
    skip, out = (v.reshape(-1, 1, 1, 1) for v in (c.c_skip, c.c_out))
    in_output_space = skip * X + out * (without + 2.5 * (with_cond - without))
    assert torch.allclose(guided(denoiser, 2.5, NULL)(X, T, COND), in_output_space, atol=1e-11)


def test_one_batched_pass_and_none_too_many():
    network = Linear()
    denoiser = Denoiser(network, Formulation(LinearBeta()))
    guided(denoiser, 2.0, NULL)(X, T, COND)
    assert network.rows == [6]
    assert guided(denoiser, 1.0, NULL) is denoiser
    assert torch.equal(guided(denoiser, 1.0)(X, T, COND), denoiser(X, T, COND))


def test_guidance_0_is_unconditional_and_channels_are_a_subset():
    denoiser = Denoiser(Linear(), Formulation(LinearBeta()))
    assert torch.allclose(guided(denoiser, 0.0, NULL)(X, T, COND), denoiser(X, T, NULL.expand(3)))
    some, every = guided(denoiser, 4.0, NULL, channels=3)(X, T, COND), guided(denoiser, 4.0, NULL)(X, T, COND)
    assert torch.equal(some[:, :3], every[:, :3])
    assert torch.allclose(some[:, 3:], denoiser(X, T, COND)[:, 3:])
    assert not torch.allclose(some[:, 3:], every[:, 3:])


def test_an_interval_guides_its_levels_only():
    network = Linear()
    denoiser = Denoiser(network, Formulation(LinearBeta()))
    levels = denoiser.path.level(T)
    mixed = guided(denoiser, 3.0, NULL, interval=(float(levels[0]) + 1e-3, float(levels[1]) + 1e-3))
    got = mixed(X, T, COND)
    plain, full = denoiser(X, T, COND), guided(denoiser, 3.0, NULL)(X, T, COND)
    assert torch.allclose(got[[0, 2]], plain[[0, 2]])
    assert torch.allclose(got[1], full[1])
    network.rows.clear()
    assert torch.equal(mixed(X[2:], T[2:], COND[2:]), denoiser(X[2:], T[2:], COND[2:]))
    assert network.rows == [1, 1]


def test_conditions_of_several_tensors():
    denoiser = Denoiser(Linear(), Formulation(LinearBeta()))
    cond, null = {"text": COND[:, None]}, {"text": NULL[:, None]}
    assert torch.allclose(guided(denoiser, 2.0, null)(X, T, cond), guided(denoiser, 2.0, NULL)(X, T, COND))
    with pytest.raises(ValueError, match="form of the condition: a dict of text"):
        guided(denoiser, 2.0, NULL)(X, T, cond)


def test_the_network_knows_its_null_condition():
    network = Linear()
    denoiser = Denoiser(network, Formulation(LinearBeta()))
    with pytest.raises(ValueError, match="pass null_cond"):
        guided(denoiser, 2.0)(X, T, COND)
    network.drop_condition = lambda cond, drop: torch.where(drop, 0.0, cond)
    assert torch.equal(guided(denoiser, 2.0)(X, T, COND), guided(denoiser, 2.0, NULL)(X, T, COND))


def test_a_learned_variance_is_the_conditional_ones():
    denoiser = Denoiser(Linear(wide=True), Formulation(LinearBeta()))
    x0, taps = guided(denoiser, 2.0, NULL).full(X, T, COND)
    assert torch.equal(taps["extra"], denoiser.full(X, T, COND)[1]["extra"])
    assert torch.equal(x0, guided(denoiser, 2.0, NULL)(X, T, COND))
    ddpm("learned")(Bound(guided(denoiser, 2.0, NULL), COND), State(X), 0.5, 0.4, torch.zeros_like(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channels": 0}, "channels"), ({"interval": (2.0, 1.0)}, "interval"), ({"null_cond": NULL}, "needs a condition")],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        guided(Denoiser(Linear(), Formulation(LinearBeta())), 2.0, **options)(X, T)
