"""The least squares GAN and what a translation is held to: formulas by hand, in float64."""

import math

import pytest
import torch
from torch import nn

from percepta.discrepancies.gan import least_squares, right
from percepta.estimate import Batch, Estimate, Translate
from percepta.objectives.adversarial import Adversarial
from percepta.objectives.translation import CYCLE, Alike, Cam, MeanSquare
from percepta.rng import rng_for


class Two(nn.Module):
    """A map of 2 x 2 patches, and two logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map, self.logits = nn.Conv2d(3, 1, 4, 4).double(), nn.Conv2d(3, 2, 8).double()

    def forward(self, x):
        return [self.map(x), self.logits(x).flatten(1)]


def images(seed, rows=3):
    return torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def estimate(**taps):
    return Estimate(images(1), images(2), False, taps=taps)


def numbers(critic, x, target):
    """Loops over images and logits."""
    rows = []
    for row in range(len(x)):
        total = 0.0
        for logits in critic(x):
            values = logits[row].flatten().tolist()
            total += math.fsum((v - target) ** 2 for v in values) / len(values)
        rows.append(total)
    return rows


def test_least_squares_by_hand():
    """Critic: real to 1, made to 0. Generator: made to 1. A map and two logits count alike, by their means."""
    judge, rng = Adversarial(Two()), rng_for(0, 0, 3)
    est = estimate()
    assert judge(est).tolist() == pytest.approx(numbers(judge.critic, est.x0_hat, 1))
    real, fake = numbers(judge.critic, est.x0, 1), numbers(judge.critic, est.x0_hat, 0)
    assert judge.critic_loss(est, rng).item() == pytest.approx((sum(real) + sum(fake)) / 3)
    patches = [v for logits in judge.critic(est.x0_hat) for v in logits.flatten().tolist()]
    assert float(judge.told["fooled"]) == pytest.approx(sum(v > 0.5 for v in patches) / len(patches))


def test_the_best_critic_and_generator_have_no_loss_and_half_is_right_nowhere():
    ones, zeros = [torch.ones(2, 1, 2, 2), torch.ones(2, 2)], [torch.zeros(2, 1, 2, 2), torch.zeros(2, 2)]
    assert least_squares(ones, 1).tolist() == least_squares(zeros, 0).tolist() == [0, 0]
    assert least_squares(ones, 0).tolist() == [2, 2]
    assert (float(right(ones, True)), float(right(ones, False)), float(right(zeros, False))) == (1, 0, 1)
    assert least_squares([torch.full((1, 4), 300.0, dtype=torch.float16)], 0).tolist() == [90000]  # beyond fp16


def test_taps_are_judged_where_they_are_named_and_missed_by_name():
    judge = Adversarial(Two(), "real_a", "fake_a")
    est = estimate(real_a=images(3), fake_a=images(4))
    assert judge(est).tolist() == pytest.approx(numbers(judge.critic, images(4), 1))
    with pytest.raises(ValueError, match="has no tap fake_a, but real_a"):
        judge(estimate(real_a=images(3)))


def test_the_critic_learns_from_its_turn_and_the_maker_from_its_own():
    judge, made = Adversarial(Two(), "real_b", "fake_b"), images(5).requires_grad_()
    est = estimate(real_b=images(6), fake_b=made)
    judge.critic_loss(est.detach(), rng_for(0, 0, 3)).backward()
    assert made.grad is None and all(p.grad.abs().max() > 0 for p in judge.critic.parameters())
    judge(est).sum().backward()
    assert made.grad.abs().max() > 0


def test_cycle_cam_and_latents_by_hand():
    names = ("cycle_a", "real_a", "cycle_b", "real_b")
    taps = {name: images(k) for k, name in enumerate(names)}
    wanted = sum((taps[f"cycle_{d}"] - taps[f"real_{d}"]).abs().flatten(1).mean(1) for d in "ab")
    assert torch.allclose(Alike(CYCLE)(estimate(**taps)), wanted)
    assert Alike([("real_a", "real_a")])(estimate(**taps)).tolist() == [0, 0, 0]
    logits = {f"cam_{way}_{which}": torch.randn(3, 2) for way in ("a2b", "b2a") for which in ("real", "same")}
    by_hand = [
        sum(
            math.log1p(math.exp(-v if name.endswith("real") else v)) / 2
            for name, x in logits.items()
            for v in x[row].double().tolist()
        )
        for row in range(3)
    ]
    assert Cam()(estimate(**logits)).tolist() == pytest.approx(by_hand, rel=1e-5)
    mu = {"mu_a": images(7), "mu_b": images(8)}
    assert torch.allclose(MeanSquare(tuple(mu))(estimate(**mu)), sum(x.square().flatten(1).mean(1) for x in mu.values()))


def test_a_translation_needs_both_domains():
    class Same:
        def taps(self, a, b, rng):
            return {"fake_b": a}

    rng, batch = rng_for(0, 0, 3), Batch(images(2).float(), source=images(1).float())
    est = Translate(Same())(batch, rng)
    assert torch.equal(est.x0_hat, batch.source) and torch.equal(est.x0, batch.x0) and not est.paired and est.rng is rng
    with pytest.raises(ValueError, match="needs images of both domains"):
        Translate(Same())(Batch(images(2).float()), rng)


def test_sets_of_different_size_count_by_their_means():
    judge, rng = Adversarial(Two(), real="real"), rng_for(0, 0, 3)
    est = estimate(real=images(4, rows=5))
    real, fake = numbers(judge.critic, est.taps["real"], 1), numbers(judge.critic, est.x0_hat, 0)
    assert judge.critic_loss(est, rng).item() == pytest.approx(sum(real) / 5 + sum(fake) / 3)
