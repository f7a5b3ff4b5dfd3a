"""Diffusion-GAN: the noise by hand, the published rule for T, and that a run resumed is the run."""

import pytest
import torch
from latent_parts import Nothing, Toy, autoencoder, batch, estimate
from torch import nn

from percepta.estimate import Batch, Translate
from percepta.networks.latent_critic import LatentCritic
from percepta.objectives.diffused import Adaptive, DiffusedAdversarial, mixed_times, signs
from percepta.objectives.prior import LatentDiffusionGan
from percepta.objectives.term import Term
from percepta.path import LinearBeta
from percepta.rng import rng_for
from percepta.training import checkpoint as checkpoints
from percepta.training.method import Method
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step


class Patches(nn.Module):
    """Two maps of logits of unequal size."""

    def __init__(self, bias: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.one, self.two, self.settled = nn.Conv2d(3, 1, 4, stride=2), nn.Conv2d(3, 2, 8), 0
        for layer in (self.one, self.two) if bias is not None else ():
            nn.init.constant_(layer.bias, bias)

    def forward(self, x):
        return [self.one(x), self.two(x)]

    def settle(self):
        self.settled += 1


def test_times_are_zero_for_half_and_else_proportional_to_themselves():
    length, rows = 12, 40_000
    k = (mixed_times(length, rng_for(0, 0, rows)) * length).round().long()
    shares = torch.bincount(k, minlength=length + 1).double() / rows
    expected = torch.tensor([0.5] + [0.5 * i / 78 for i in range(1, length + 1)], dtype=torch.float64)
    assert len(shares) == length + 1
    assert bool(((shares - expected).abs() < 5 * (expected / rows).sqrt()).all())
    assert set(mixed_times(1, rng_for(0, 0, 50)).tolist()) == {0.0, 1.0}


def by_hand(x, rng, length, std=0.05):
    """As printed: betas linear over these T steps."""
    abar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - torch.linspace(1e-4, 0.02, length, dtype=torch.float64)).cumprod(0)])
    abar = abar[(mixed_times(length, rng) * length).round().long()][:, None, None, None]
    return abar.sqrt() * x.double() + (1 - abar).sqrt() * std * rng.normal("eps", x.shape[1:]).double()


def test_the_critic_sees_noised_images_by_hand():
    judge, rng = DiffusedAdversarial(Patches(), "real_b", "fake_b"), rng_for(0, 0, 6)
    est = estimate(Toy(), rng, 6)
    judge.critic.p.fill_(0.5)
    assert judge.critic.length == 505

    def logits(name, stream):
        x = by_hand(est.taps[name], stream, 505)
        return [x.detach().float() for x in judge.critic.critic(x.float())]

    turn = rng.fork("diffused-critic/fake_b")
    real, fake = logits("real_b", turn.fork("real")), logits("fake_b", turn.fork("fake"))
    expected = sum(((r - 1) ** 2).mean() + (f**2).mean() for r, f in zip(real, fake, strict=True))
    assert judge.critic_loss(est.detach(), rng).item() == pytest.approx(expected.item(), rel=1e-5)
    made = logits("fake_b", rng.fork("diffused/fake_b"))
    expected = sum(((x - 1) ** 2).flatten(1).mean(1) for x in made)
    assert torch.allclose(judge(est), expected, rtol=1e-4)
    assert judge.told["T"].item() == 505
    assert torch.allclose(signs(real), sum((r > 0.5).float().flatten(1).mean(1) * 2 - 1 for r in real) / 2)


def test_the_gradient_passes_the_noise():
    model = Toy()
    judge = DiffusedAdversarial(Patches(), "real_b", "fake_b")
    judge(estimate(model, rng_for(0, 0, 4))).sum().backward()
    assert float(model.a2b.weight.grad.abs().max()) > 1e-4 and model.b2a.weight.grad is None


def test_p_follows_the_published_rule():
    """Every 4 steps by images/(kimg 1000), up where r_d is above 0.6, within [0, 1]; T between 10 and 1000."""
    critic = Adaptive(Patches(), kimg=0.1)  # C = 20 images / 100
    seen = []
    for step in range(24):
        high = step < 12 or step == 23
        critic.look(torch.full((2,), 0.65 if high else 0.55), step)
        critic.look(torch.full((3,), 0.65 if high else 0.55), step)
        critic.settle()
        seen.append((round(critic.p.item(), 4), critic.length))
    assert [p for p, _ in seen] == [0.0] * 3 + [0.2] * 4 + [0.4] * 4 + [0.6] * 4 + [0.4] * 4 + [0.2] * 4 + [0.0]
    assert {t for _, t in seen} == {10, 208, 406, 604}
    assert critic.critic.settled == 24
    for way, end in ((1.0, 1.0), (-1.0, 0.0)):
        for step in range(40):
            critic.look(torch.full((5,), way), step)
            critic.settle()
        assert critic.p.item() == end
    assert Adaptive(Patches()).kimg == 100


def test_a_turn_that_moved_nothing_is_not_counted():
    critic = Adaptive(Patches(), kimg=0.1)
    critic.look(torch.ones(5), 0)  # not finite: no settle
    critic.look(torch.ones(2), 1)
    critic.look(torch.ones(3), 1)
    critic.settle()
    assert critic.seen.tolist() == [5, 5, 1]


def test_what_cannot_be():
    for wrong in ({"kimg": 0.0}, {"least": 0}, {"least": 20, "most": 10}):
        with pytest.raises(ValueError, match="a least up to a most"):
            Adaptive(Patches(), **wrong)
    with pytest.raises(ValueError, match="deviation of the noise"):
        DiffusedAdversarial(Patches(), std=0.0)


def run(state, method, settings, first, last):
    for step in range(first, last):
        moved = Batch(batch(5).x0 * (1 - 0.05 * step), source=batch(5).source)
        take_step(method, state, settings, moved, rng_for(0, 5 * step, 5, step))
        state.step += 1


def made(micro=None):
    model = Toy()
    diffused = DiffusedAdversarial(Patches(bias=1.5), "real_b", "fake_b", kimg=0.05)  # sure of itself: p rises
    latent = LatentDiffusionGan(autoencoder(), LatentCritic(3, 4, 1), LinearBeta(1000), real="real_a", fake="fake_a")
    method = Method(model, Translate(model), [Term("diffused", diffused), Term("latent", latent)], Nothing())
    settings = Settings(batch=5, clip=None, steps=12, lr=3e-3, micro_batch=micro)
    return make_state(method, settings, torch.device("cpu")), method, settings


def test_a_run_that_is_resumed_is_the_run(tmp_path):
    """Stopped between two looks: p, what was seen since, and the vectors of the spectral norms are in the checkpoint."""
    whole = made()
    run(*whole, 0, 11)
    first = made()
    run(*first, 0, 6)
    checkpoints.save(tmp_path, 6, first[0].tensors(), first[0].numbers(), keep_last=2)
    second = made()
    second[0].load(checkpoints.load(tmp_path / "checkpoint-6"))
    assert second[1].players["diffused"].seen[2] == 2
    run(*second, 6, 11)
    one, two = whole[0].tensors(), second[0].tensors()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[file][k], two[file][k]) for file in one for k in one[file])
    assert whole[1].players["diffused"].p > 0, "the rule was at work"
    assert "u" in " ".join(one["weights-latent"])


def test_micro_batches_move_p_alike():
    whole, parts = made(), made(micro=2)
    run(*whole, 0, 8)
    run(*parts, 0, 8)
    for k, value in whole[1].players["diffused"].state_dict().items():
        assert torch.allclose(value, parts[1].players["diffused"].state_dict()[k], atol=1e-5), k
    assert whole[1].players["diffused"].p > 0
