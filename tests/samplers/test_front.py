"""The front door: image k depends on (seed, k) and on nothing else; names, defaults and refusals."""

import pytest
import torch
from torch import nn

from percepta.formulation import FLOW, Formulation
from percepta.path import LinearBeta, VarianceExploding
from percepta.rng import rng_for
from percepta.samplers import SOLVERS, ddim, euler, grid, guided, sample, sample_batches, solver


def rng(first=0, count=8, seed=1):
    return rng_for(seed, first, count, stream="sample")


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "adaptive"])
def test_images_do_not_depend_on_the_batch(name, gaussian):
    """An elementwise denoiser has no batched kernels whose round-off could differ: to the bit."""
    images = [sample(gaussian(LinearBeta()), name, 6, shape=(3, 4, 4), rng=rng(), batch_size=size) for size in (1, 3, 8)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert torch.equal(sample(gaussian(LinearBeta()), name, 6, shape=(3, 4, 4), rng=rng(3, 2)), images[0][3:5])
    assert not torch.equal(images[0][0], images[0][1])
    assert not torch.equal(sample(gaussian(LinearBeta()), name, 6, shape=(3, 4, 4), rng=rng(seed=2)), images[0])


@pytest.mark.parametrize("name", ["ddpm", "heun"])
def test_images_of_a_real_network_do_not_depend_on_the_batch(name, denoiser):
    ours = denoiser(FLOW)
    images = [sample(ours, name, 5, shape=(3, 8, 8), rng=rng(), batch_size=size) for size in (1, 3, 8)]
    assert torch.allclose(images[0], images[1], atol=1e-4)
    assert torch.allclose(images[0], images[2], atol=1e-4)


def test_conditions_are_cut_with_the_batch(denoiser):
    ours = denoiser(Formulation(LinearBeta()), classes=5)
    cond = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    whole = sample(ours, "ddim", 3, shape=(3, 8, 8), rng=rng(), cond=cond)
    parts = sample(ours, "ddim", 3, shape=(3, 8, 8), rng=rng(), cond=cond, batch_size=3)
    assert torch.allclose(whole, parts, atol=1e-3 * whole.abs().max().item())
    assert not torch.allclose(whole, sample(ours, "ddim", 3, shape=(3, 8, 8), rng=rng(), cond=cond.flip(0)), atol=1e-2)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.weight = nn.Parameter(torch.ones(()))

    path = LinearBeta()

    def forward(self, x_t, t, cond=None):
        return self.frozen(self.dropout(x_t)) / 2 * self.weight


def test_sampling_is_in_eval_mode_without_a_graph_and_puts_all_back():
    ours = Dropping()
    images = sample(ours, "ddim", 4, shape=(1, 2, 2), rng=rng())
    assert not images.requires_grad
    assert torch.equal(images, sample(ours, "ddim", 4, shape=(1, 2, 2), rng=rng()))
    assert ours.training
    assert ours.dropout.training
    assert not ours.frozen.training


def test_between_batches_the_caller_has_its_own_modes():
    ours = Dropping()
    for _ in sample_batches(ours, ddim(), grid(ours.path, 3), shape=(1, 2, 2), rng=rng(), batch_size=3):
        assert torch.is_grad_enabled()
        assert ours.dropout.training


def test_batches_come_one_at_a_time(gaussian):
    ours = gaussian(LinearBeta())
    batches = sample_batches(ours, ddim(), grid(ours.path, 3), shape=(1, 2, 2), rng=rng(0, 7), batch_size=3)
    assert len(next(batches)) == 3
    assert ours.calls == 3
    assert [len(b) for b in batches] == [3, 1]


def test_options_reach_the_solver(gaussian):
    ours = gaussian(LinearBeta(), 4.0)
    clipped = sample(ours, "ddim", 10, shape=(1, 8, 8), rng=rng(), clip=(-1, 1))
    assert clipped.abs().max() <= 1
    assert sample(ours, "ddim", 10, shape=(1, 8, 8), rng=rng()).abs().max() > 1
    assert torch.equal(clipped, sample(ours, ddim(clip=(-1, 1)), grid(ours.path, 10, "leading"), shape=(1, 8, 8), rng=rng()))
    noisy = sample(ours, "ddim", 10, shape=(1, 8, 8), rng=rng(), eta=1.0)
    assert torch.allclose(noisy, sample(ours, "ddpm", 10, shape=(1, 8, 8), rng=rng()), atol=1e-4)
    assert not torch.equal(noisy, sample(ours, "ddim", 10, shape=(1, 8, 8), rng=rng(), spacing="trailing", eta=1.0))


def test_guidance_goes_through_the_front_door(denoiser):
    ours = denoiser(Formulation(LinearBeta()), classes=4)
    ours.network.drop_condition = lambda cond, drop: torch.where(drop, 3, cond)
    cond = torch.tensor([0, 1])
    options = {"shape": (3, 8, 8), "rng": rng(0, 2), "cond": cond}
    expected = sample(guided(ours, 3.0, torch.tensor([3])), "ddim", 4, **options)
    assert torch.equal(sample(ours, "ddim", 4, guidance=3.0, **options), expected)
    assert not torch.allclose(sample(ours, "ddim", 4, **options), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dimm"}, "known: ddim, ddpm"),
        ({"sampler": "heun", "eta": 0.5}, "eta belongs to the sampler ddim"),
        ({"sampler": "heun", "clip": (-1, 1)}, "clip"),
        ({"sampler": euler(), "eta": 0.5}, "ready-made"),
        ({"steps": grid(LinearBeta(), 3), "spacing": "trailing"}, "leave it out"),
        ({"steps": grid(VarianceExploding(), 3)}, "path.time_of"),
        ({"batch_size": 0}, "batch_size"),
        ({"cond": torch.zeros(3)}, "3 rows, 8 images"),
        ({"spacing": "uniform"}, "does not suit"),
    ],
)
def test_refusals(options, message, gaussian):
    with pytest.raises(ValueError, match=message):
        sample(gaussian(LinearBeta()), **({"shape": (1, 2, 2), "rng": rng()} | options))


def test_solver_is_by_name():
    assert [solver(name).name for name in SOLVERS] == list(SOLVERS)
    assert len(SOLVERS) == 7
    assert solver("ddim", eta=1.0).noisy
    assert not solver("ddim").noisy
