"""LaDiffGAN's two domains are not mixed up: what each term reads, whom it teaches, and in whose latents; critics see no graph."""

import pytest
import torch
from latent_parts import bits, same
from translators import ALONE, KINDS, built, made, settings

from percepta.data import find_domains, open_source
from percepta.networks import load_autoencoder
from percepta.objectives.term import TrainsCritic
from percepta.rng import rng_for
from percepta.training.evaluating import images_of
from percepta.training.phases import denoiser_of, identity

OTHER = {"a": "b", "b": "a"}
OPTIONS = [{}, {"denoising": "C"}, {"latent_gan": "B", "denoising": "B"}, {"diffusion_gan": True, **ALONE}]


def taught(method, batch, name):
    """The generators that a term's gradient comes to."""
    est = method.estimate(batch, rng_for(0, 0, 2))
    (term,) = (term for term in method.terms if term.name == name)
    named = dict(method.model.named_parameters())
    found = torch.autograd.grad(term(est), list(named.values()), allow_unused=True)
    return {name.split(".")[0] for name, g in zip(named, found, strict=True) if g is not None and g.abs().max() > 0}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_made_for_a_domain_is_judged_as_one_of_it(phases, options):
    """Into b leads a2b; option B of the denoising loss teaches the generator that makes the condition."""
    method, _, _, batch, _ = built(phases, generator="cyclegan", **options)
    supervised = [term.name for term in method.terms if term.name.split("/")[0] in ("adversarial", "latent-gan", "denoising")]
    assert len(supervised) == (2 if options.get("denoising") == "none" else 6)
    for name in supervised:
        what, domain = name.split("/")
        made_of = domain if what == "denoising" and options.get("denoising") == "B" else OTHER[domain]
        assert taught(method, batch, name) == {f"{made_of}2{OTHER[made_of]}"}, name
        if what != "denoising":
            judge = next(term.objective for term in method.terms if term.name == name)
            assert (judge.real, judge.fake) == (f"real_{domain}", f"fake_{domain}")


def weights(phases, recipe, domain):
    return bits(load_autoencoder(getattr(recipe, f"autoencoder_{domain}") / "model"))


def test_latents_are_those_of_the_domain_and_a_prior_is_told_the_others(phases):
    asked, given = {}, settings(phases / "no", cache=phases / "cache")
    recipe, given = made(generator="cyclegan", latent_gan="B").settled(given)

    def trained(name, phase, its):
        asked[name] = its
        return phases / "cache" / "phases" / f"{phase.name}-{identity(phase, its)}"

    recipe = recipe.prepared(given, trained)
    found = find_domains("shapes:length=4")
    assert {name: its.data for name, its in asked.items()} == {
        f"{what} of {d}": {"A": found.train_a, "B": found.train_b}[d] for what in ("autoencoder", "prior", "features") for d in "AB"
    }
    coders = {d: weights(phases, recipe, d) for d in "ab"}
    assert not same(coders["a"], coders["b"])
    for latent_gan in "AB":
        method, *_ = built(phases, generator="cyclegan", latent_gan=latent_gan)
        for term in method.terms:
            what, _, domain = term.name.partition("/")
            if what == "latent-gan":
                assert same(bits(term.objective.encoder), coders[domain])
            if what == "denoising":
                assert same(bits(term.objective.prior.own), coders[domain])
                assert same(bits(term.objective.prior.other), coders[OTHER[domain]])
            if what == "latent-gan" and latent_gan == "B":
                features = getattr(recipe, f"features_{domain}")
                assert same(bits(term.objective.denoiser), bits(denoiser_of(features)))
                assert not same(bits(term.objective.denoiser), bits(denoiser_of(getattr(recipe, f"features_{OTHER[domain]}"))))


def test_examples_are_shown_from_the_domain_that_they_are_of(phases):
    method, _, given, batch, _ = built(phases, generator="cyclegan", **ALONE)
    assert torch.equal(method.product.a, batch.source) and torch.equal(method.product.b, batch.x0)
    est = method.estimate(batch, rng_for(0, 0, 2))
    assert torch.equal(est.taps["real_a"], batch.source) and torch.equal(est.x0_hat, est.taps["fake_b"])
    assert len(images_of(given, method.product.source)) == len(open_source("shapes:length=4,part=test"))


@pytest.mark.parametrize("generator", KINDS)
def test_critics_see_what_the_generator_made_without_its_graph(phases, monkeypatch, generator):
    """Their turn would keep it alive, and walk it."""
    method, _, _, batch, _ = built(phases, generator=generator, **ALONE)
    seen = []
    for term in method.terms:
        if isinstance(term.objective, TrainsCritic):
            loss = term.objective.critic_loss
            monkeypatch.setattr(term.objective, "critic_loss", lambda est, rng, loss=loss: (seen.append(est), loss(est, rng))[1])
    turns = list(method.step(batch, rng_for(0, 0, 2)))
    assert [turn.player for turn in turns] == ["adversarial/a", "adversarial/b", "model"] and len(seen) == 2
    assert not any(x.requires_grad for est in seen for x in (est.x0_hat, *est.taps.values()))
    for turn in turns[:2]:
        turn.loss.backward()
        assert all(p.grad is None for p in method.model.parameters())
    torch.autograd.backward(turns[2].loss, inputs=list(method.model.parameters()))
