"""What latent diffusion knows of a domain, as terms: the formulas by hand, and that the translator alone learns."""

import pytest
import torch
from latent_parts import MEANING, Nothing, Toy, autoencoder, batch, bits, denoiser, estimate, prior, same

import percepta.objectives.prior as objectives
from percepta.estimate import Batch, Estimate, Translate
from percepta.formulation import EDM, Denoiser
from percepta.networks.autoencoders import Autoencoder
from percepta.networks.latent_critic import LatentCritic
from percepta.networks.latent_prior import GIVEN
from percepta.objectives.prior import Between, ConditionalDenoising, LatentDiffusionGan, LatentMatching
from percepta.objectives.term import Term
from percepta.path import LinearBeta
from percepta.rng import rng_for
from percepta.training.method import Method
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

CPU = torch.device("cpu")
PATH = LinearBeta(1000)


def numbers(rows=4, step=0):
    return rng_for(0, 100 * step, rows, step)


def latent_gan(fake="fake_b", real="real_b", **more):
    return LatentDiffusionGan(autoencoder(), LatentCritic(3, 4, 1), PATH, real=real, fake=fake, **more)


def matching():
    return LatentMatching(autoencoder(), denoiser(), Between(0.1, 0.6), "real_b", "fake_b")


def denoising(option="A", direction="a2b"):
    return ConditionalDenoising(prior(), direction, option)


JUDGES = {
    "gan": latent_gan,
    "matching": matching,
    "A": denoising,
    "B": lambda: denoising("B"),
    "C": lambda: denoising("C"),
}


def noised(z, t, eps):
    abar = PATH.abar[(t * 1000).round().long()][:, None, None, None]
    return abar.sqrt() * z.double() + (1 - abar).sqrt() * eps.double()


def test_the_latent_gan_by_hand():
    """The same t for a row's two latents, noise of its own for each; the critic reads DDPM's timestep."""
    judge, rng = latent_gan(times=Between(0.2, 0.4)), numbers()
    est = estimate(Toy(), rng)

    def judged(name, stream, times):
        fork = rng.fork(times)
        k = 200 + (fork.uniform("t") * 200).floor()
        eps = (fork if stream is None else fork.fork(stream)).normal("eps", (3, 4, 4))
        z_t = noised(judge.encoder.encode(est.taps[name])[0], (k + 1) / 1000, eps)
        (logits,) = judge.critic(z_t.float(), k.float())
        return logits.double()

    real, fake = (judged(f"{which}_b", which, "latent-critic/fake_b") for which in ("real", "fake"))
    by_hand = ((real - 1) ** 2 + fake**2).mean()
    assert judge.critic_loss(est.detach(), rng).item() == pytest.approx(by_hand.item(), rel=1e-5)
    maker = judged("fake_b", None, "latent-gan/fake_b")
    assert torch.allclose(judge(est).double(), ((maker - 1) ** 2).mean((1, 2, 3)), rtol=1e-5)
    assert float(judge.told["fooled"]) == pytest.approx(float((maker > 0.5).double().mean()))


@pytest.mark.parametrize(("option", "direction"), [("A", "a2b"), ("A", "b2a"), ("B", "a2b"), ("C", "a2b"), ("C", "b2a")])
def test_conditional_denoising_by_hand(option, direction):
    judge, rng = denoising(option, direction), numbers()
    est = estimate(Toy(), rng)
    source, target = direction.split("2")
    denoised, told = (f"real_{target}", f"fake_{source}") if option == "B" else (f"fake_{target}", f"real_{source}")
    fork = rng.fork(f"denoising/{direction}/{option}")
    k = 20 + (fork.uniform("t") * 780).floor()
    eps = fork.normal("eps", (3, 4, 4))
    z = judge.prior.own.encode(est.taps[denoised])[0]
    given = judge.prior.other.encode(est.taps[told])[0]
    network = judge.prior.denoiser.network.network.model
    eps_hat = network(torch.cat([noised(z, (k + 1) / 1000, eps).float(), given], 1), k).sample
    error = (eps_hat - eps).double()
    weight = 1 - PATH.abar[(k + 1).long()][:, None, None, None]
    by_hand = (weight * error).square() / 2 if option == "C" else error.square()
    assert torch.allclose(judge(est).double(), by_hand.mean((1, 2, 3)), rtol=1e-3)


def test_score_distillation_is_the_weighted_error_and_not_the_denoisers_gradient():
    """Option C at z: sigma^2 (eps_hat - eps) over the number of latents; option A goes through the denoiser."""
    judge, rng = denoising("C"), numbers(2)
    est = estimate(Toy(), rng, 2)
    (found,) = torch.autograd.grad(judge(est).sum(), est.taps["fake_b"])
    fork = rng.fork("denoising/a2b/C")
    k, eps = 20 + (fork.uniform("t") * 780).floor(), fork.normal("eps", (3, 4, 4))
    image = est.taps["fake_b"].detach().requires_grad_()
    z = judge.prior.own.encode(image)[0]
    with torch.no_grad():
        z_t = noised(z, (k + 1) / 1000, eps).float()
        given = judge.prior.other.encode(est.taps["real_a"])[0]
        eps_hat = judge.prior.denoiser.network(z_t, k.float(), {GIVEN: given})
    sigma2 = (1 - PATH.abar[(k + 1).long()]).float()[:, None, None, None]
    (expected,) = torch.autograd.grad((z * sigma2 * (eps_hat - eps)).sum() / z[0].numel(), image)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    (through,) = torch.autograd.grad(denoising("A")(estimate_of(est)).sum(), est.taps["fake_b"])
    assert not torch.allclose(through, found, rtol=0.1)


@pytest.mark.parametrize(("name", "seen", "told"), [
    ("gan", "fake_b", None), ("matching", "fake_b", None), ("A", "fake_b", "real_a"), ("B", "real_b", "fake_a"), ("C", "fake_b", "real_a"),
])  # fmt: skip
def test_latents_are_scaled_as_those_that_diffusion_was_trained_on(name, seen, told, monkeypatch):
    judge, rng, latents, given = JUDGES[name](), numbers(), [], []
    own, other = (judge.encoder, None) if told is None else (judge.prior.own, judge.prior.other)
    for coder in (own, other):
        if coder is not None:
            coder.set_scale(2.0, 0.25)
    noised = objectives.noised
    monkeypatch.setattr(objectives, "noised", lambda z, *rest: (latents.append(z), noised(z, *rest))[1])
    if told is not None:
        network = judge.prior.denoiser.network
        forward = network.forward
        monkeypatch.setattr(network, "forward", lambda x, time, cond: (given.append(cond[GIVEN]), forward(x, time, cond))[1])
    est = estimate(Toy(), rng)
    judge(est)
    assert torch.allclose(latents[-1], (own.posterior(est.taps[seen])[0] - 0.25) / 2, atol=1e-6)
    if told is not None:
        assert torch.allclose(given[0], (other.posterior(est.taps[told])[0] - 0.25) / 2, atol=1e-6)
    if name == "gan":
        judge.critic_loss(est.detach(), rng)
        expected = [(own.posterior(est.taps[f"{which}_b"])[0] - 0.25) / 2 for which in ("real", "fake")]
        assert all(torch.allclose(z, x, atol=1e-6) for z, x in zip(latents[-2:], expected, strict=True))


def estimate_of(est):
    return Estimate(est.x0_hat, est.x0, False, taps=est.taps, rng=est.rng)


def test_matching_by_hand():
    judge, rng = matching(), numbers(6)
    est = estimate(Toy(), rng, 6)
    fork = rng.fork("latent-matching/fake_b")
    k = 100 + (fork.uniform("t") * 500).floor()
    means = []
    for name in ("real", "fake"):
        z_t = noised(judge.encoder.encode(est.taps[f"{name}_b"])[0], (k + 1) / 1000, fork.fork(name).normal("eps", (3, 4, 4)))
        found = []
        hook = judge.layer.register_forward_hook(lambda _m, _i, out, found=found: found.append(out))
        judge.denoiser.network(z_t.float(), k.float())
        hook.remove()
        flat = found[0].double().flatten(2)
        means.append(torch.cat([flat.mean(2), flat.std(2, correction=0)], 1).mean(0))
    real, fake = means
    assert judge(est).item() == pytest.approx(((fake - real).square().sum() / real.square().sum()).item(), rel=1e-4)


def learned(judge, est, model):
    """The gradient at each generator; None where none comes."""
    model.zero_grad()
    loss = judge(est)
    if loss.requires_grad:
        loss.sum().backward()
    return {name: getattr(model, name).weight.grad for name in ("a2b", "b2a")}


def frozen_parts(judge):
    found = [value for value in vars(judge).values() if isinstance(value, torch.nn.Module) and not isinstance(value, LatentCritic)]
    assert found
    return found


@pytest.mark.parametrize("name", JUDGES)
def test_the_generator_learns_and_what_judges_does_not(name):
    """B is about the generator of the other way: it makes the condition."""
    judge, model, rng = JUDGES[name](), Toy(), numbers()
    before = bits(*frozen_parts(judge))
    gradients = learned(judge, estimate(model, rng), model)
    moved, still = ("b2a", "a2b") if name == "B" else ("a2b", "b2a")
    assert gradients[still] is None
    assert float(gradients[moved].abs().max()) > 1e-6
    assert same(before, bits(*frozen_parts(judge)))
    assert all(p.grad is None and not p.requires_grad for part in frozen_parts(judge) for p in part.parameters())


@pytest.mark.parametrize("name", JUDGES)
def test_a_planted_no_grad_in_the_encoder_is_seen(name, monkeypatch):
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", torch.no_grad()(encode))
    judge, model = JUDGES[name](), Toy()
    assert set(learned(judge, estimate(model, numbers()), model).values()) == {None}


def test_a_planted_no_grad_in_the_denoiser_is_seen(monkeypatch):
    judge, model = denoising("B"), Toy()  # the condition is read by the denoiser alone
    monkeypatch.setattr(Denoiser, "full", torch.no_grad()(Denoiser.full))
    assert set(learned(judge, estimate(model, numbers()), model).values()) == {None}


@pytest.mark.parametrize("name", JUDGES)
def test_a_failure_leaves_nothing_switched(name, monkeypatch):
    judge, model = JUDGES[name](), Toy()
    est = estimate(model, numbers())

    def fails(*args, **kwargs):
        raise RuntimeError("planted")

    place = judge.critic if name == "gan" else judge.denoiser if name == "matching" else judge.prior.denoiser
    monkeypatch.setattr(place, "forward", fails)
    with pytest.raises(RuntimeError, match="planted"):
        judge(est)
    assert torch.is_grad_enabled()
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for part in frozen_parts(judge) for p in part.parameters())


@pytest.mark.parametrize("name", ["gan", "A", "B", "C"])
def test_a_row_has_its_own_noise_whatever_is_beside_it(name):
    judge, model, rng = JUDGES[name](), Toy(), numbers(5)
    whole = judge(estimate(model, rng, 5))
    both = batch(5)
    parts = [judge(Translate(model)(both.select(rows), rng.select(rows))) for rows in (slice(0, 2), slice(2, 5))]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-4)
    again = judge(estimate(model, rng_for(0, 1, 5), 5))
    assert not torch.allclose(whole, again, rtol=1e-2)
    kept = torch.tensor([True, False, True, True, False])
    assert torch.allclose(judge(estimate(model, rng, 5).select(kept)), whole[kept], rtol=1e-4)


def method(micro=None):
    model = Toy()
    terms = [Term("ldg/b", latent_gan()), Term("ldg/a", latent_gan("fake_a", "real_a")), Term("hcd", denoising(), 0.5)]
    made = Method(model, Translate(model), terms, Nothing())
    settings = Settings(batch=5, clip=None, steps=10, lr=1e-3, micro_batch=micro)
    for player in made.players.values():
        player.train()
    return made, make_state(made, settings, CPU), settings


def steps(made, state, settings, count=1):
    reports = []
    for _ in range(count):
        at = state.step
        moved = Batch(batch(5).x0 + 0.01 * at, source=batch(5).source)
        reports.append(take_step(made, state, settings, moved, numbers(5, at)))
        state.step += 1
    return reports


def test_micro_batches_are_the_whole_batch():
    """The power iteration of the critics too: once per step, however often they are run."""
    found = []
    for micro in (None, 1, 2):
        made, state, settings = method(micro)
        reports = steps(made, state, settings, 2)
        critic = made.terms[0].objective.critic
        found.append((reports[1].losses, reports[1].norms, [b.clone() for b in critic.buffers()]))
    for losses, norms, buffers in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        assert norms == pytest.approx(found[0][1], rel=1e-4)
        assert all(torch.allclose(a.float(), b.float(), atol=1e-5) for a, b in zip(buffers, found[0][2], strict=True))


def test_each_turn_moves_its_player_and_no_encoder():
    made, state, settings = method()
    assert list(made.players) == ["model", "ldg/b", "ldg/a"]
    judged = [part for term in made.terms for part in frozen_parts(term.objective)]
    before, was = bits(*judged), bits(*made.players.values())
    (report,) = steps(made, state, settings)
    assert same(before, bits(*judged))
    assert not any(same([a], [b]) for a, b in zip(was, bits(*made.players.values()), strict=True))
    assert {"critic/ldg/b", "ldg/b", "ldg/b/fooled", "hcd"} <= set(report.losses)


def test_times_between_two_fractions():
    rng = rng_for(0, 0, 4000)
    k = (Between(0.02, 0.8).draw(PATH, rng) * 1000).round().long() - 1
    assert (int(k.min()), int(k.max())) == (20, 799)
    assert float(k.double().mean()) == pytest.approx(409.5, abs=12)
    assert set((Between().draw(LinearBeta(3), rng) * 3).round().tolist()) == {1.0, 2.0, 3.0}
    t = Between(0.5, 1.0).draw(EDM.path, rng)
    assert float(t.min()) >= (EDM.path.t_min + EDM.path.t_max) / 2 - 1e-9
    assert Between.read("0.02:0.8") == Between(0.02, 0.8)
    for wrong in ("0.8:0.02", "0.5:0.5", "0:2", "a:b", "0.5"):
        with pytest.raises(ValueError, match=r"fractions of the path"):
            Between.read(wrong)
    with pytest.raises(ValueError, match="give a wider range"):
        Between(0.5, 0.51).draw(LinearBeta(10), rng)


def test_what_judges_must_be_frozen_and_what_it_reads_must_be_there():
    learning = autoencoder()
    learning.requires_grad_(True)
    with pytest.raises(ValueError, match="the encoder judges and does not learn"):
        LatentDiffusionGan(learning, LatentCritic(3, 4, 1), PATH)
    with pytest.raises(ValueError, match="the denoiser judges and does not learn"):
        LatentMatching(autoencoder(), denoiser().train())
    with pytest.raises(ValueError, match="unconditional denoiser of the encoder's latents"):
        LatentMatching(autoencoder(), prior().denoiser)
    plain = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="no random numbers"):
        latent_gan(None, None)(Estimate(plain, plain))
    with pytest.raises(ValueError, match="no tap fake_b"):
        denoising()(Estimate(plain, plain, rng=numbers(2)))
    assert MEANING.path == PATH
