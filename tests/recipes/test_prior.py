"""The recipe prior: what it denoises and is told, what it refuses, and that its folder is what was trained."""

from dataclasses import replace

import pytest
import torch
from latent_parts import autoencoder, unet
from processes import FLAGS

from percepta.estimate import Batch
from percepta.networks.latent_prior import GIVEN, load_prior
from percepta.path import Cosine, LinearBeta
from percepta.recipes.prior import TrainPrior
from percepta.rng import rng_for
from percepta.training.job import train
from percepta.training.recipe import Context
from percepta.training.settings import Settings


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two autoencoders that differ, and a third of another factor."""
    from percepta.networks import build_autoencoder

    root = tmp_path_factory.mktemp("coders")
    for name, seed in (("own", 0), ("other", 3)):
        autoencoder(seed).save_pretrained(root / name)
    build_autoencoder(overrides={"block_out_channels": (8, 8, 8), "norm_num_groups": 2}).save_pretrained(root / "quarter")
    unet(3, 3).save_pretrained(root / "unet")
    return root


def recipe(folders, **knobs):
    return TrainPrior(**{"own": str(folders / "own"), "other": str(folders / "other"), **knobs})


def context(folders, network="unet"):
    return Context(3, 8, network=str(folders / network), examples=lambda: torch.zeros(4, 3, 8, 8))


def test_what_is_denoised_and_what_is_told(folders):
    """The own latent with the posterior's noise, at times of its own; the other's mean, of the same image."""
    method = recipe(folders).build(context(folders))
    images, rng = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, rng_for(0, 0, 4)
    est = method.estimate(Batch(images, torch.tensor([1, 2, 3, 0])), rng)
    own, other = autoencoder(), autoencoder(3)
    mean, std = own.encode(images)
    assert torch.equal(est.x0, mean + std * rng.normal("posterior", (3, 4, 4)))
    assert torch.equal(est.cond[GIVEN], other.encode(images)[0])
    assert not torch.allclose(est.cond[GIVEN], own.encode(images)[0], atol=0.05)
    network = method.model.network.network.model
    k = (est.t * 1000).round() - 1
    eps_hat = network(torch.cat([est.noised.x_t, est.cond[GIVEN]], 1), k.float()).sample
    expected = (eps_hat - est.noised.eps).square().mean()
    assert method.terms[0](est).item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(method.model.parameters()) == set(network.parameters()), "no autoencoder learns"


def test_knobs_mean_what_they_say(folders):
    formulation = recipe(folders, predict="v", schedule="cosine", timesteps=50).build(context(folders)).model.formulation
    assert (formulation.path, formulation.output) == (Cosine(50), "velocity")
    assert recipe(folders).formulation().path == LinearBeta(1000)
    fresh = recipe(folders).build(replace(context(folders), network=None)).model.network.network
    assert (fresh.in_channels, fresh.out_channels, fresh.sample_size) == (6, 3, 4)


@pytest.mark.parametrize(
    ("knobs", "flags", "said"),
    [
        ({"own": None}, {}, "needs two autoencoders"),
        ({"other": "nowhere"}, {}, "--other nowhere: does not exist"),
        ({"other": "quarter"}, {}, "--own makes a latent of 2 pixels and --other of 4"),
        ({}, {"vae": "own"}, "leave --vae away"),
        ({}, {"size": 9}, "--size 9 is no multiple of 2"),
    ],
)
def test_what_cannot_be_is_refused_before_it_begins(folders, knobs, flags, said):
    if knobs.get("other") == "quarter":
        knobs = {"other": str(folders / "quarter")}
    with pytest.raises(ValueError, match=said):
        recipe(folders, **knobs).check(Settings(**{"size": 8, **flags}))


def test_a_network_that_does_not_fit_and_guidance_are_refused(folders, tmp_path):
    unet(3, 2).save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match="reads 5 channels; the two latents are 3 and 3"):
        recipe(folders).build(replace(context(folders), network=str(tmp_path / "net")))
    method = recipe(folders).build(context(folders))
    with pytest.raises(ValueError, match="is always told the other latent"):
        method.product.check(Settings(guidance=2.0))


def test_a_run_leaves_what_it_averaged(folders, tmp_path):
    """The export ends no training: what learns goes on learning, and the autoencoders are those that were given."""
    flags = {**FLAGS, "steps": 2, "sample_every": 2, "out": tmp_path / "run", "network": str(folders / "unet"), "ema": "none"}
    outcome = train(recipe(folders), replace(TrainPrior.default_settings(), **flags), quiet=True)
    made = load_prior(outcome.folder)
    for name, seed in (("own", 0), ("other", 3)):
        given, found = autoencoder(seed).state_dict(), getattr(made, name).state_dict()
        assert all(torch.equal(given[k], found[k]) for k in given)
    before = unet(3, 3).state_dict()
    assert any(not torch.equal(before[k], v) for k, v in made.denoiser.network.network.model.state_dict().items())
    method = recipe(folders).build(context(folders))
    method.model.train()
    method.product.export(tmp_path / "export", {})
    assert all(p.requires_grad for p in method.model.parameters()) and method.model.training
    images, how = method.product.preview(Settings(sample_num=4, sample_steps=2), torch.device("cpu"), lambda *_: None)
    assert images.shape == (4, 3, 8, 8) and how["num"] == 4
