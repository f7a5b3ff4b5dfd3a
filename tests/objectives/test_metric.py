"""The metric objective: what it compares, what it refuses, and that its gradient stays where it belongs."""

import pytest
import torch
from torch import Tensor, nn

from percepta.estimate import Estimate
from percepta.objectives import Metric, Term
from percepta.spaces.lpips import Lpips
from percepta.spaces.space import Features, Pixels, Reads, Space, resized
from percepta.training.trained_against import spaces_behind

torch.set_num_threads(1)


class Two(Space):
    """Two layers of different sizes; remembers what it was given."""

    reads = Reads("images", 3, 4)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 5, 3)
        self.calls: list[tuple[int, bool]] = []
        self.freeze()

    def forward(self, x: Tensor) -> Features:
        self.calls.append((x.shape[-1], torch.is_grad_enabled()))
        one = self.layer(x).tanh()
        return one, one[:, :2, ::2, ::2]


class Own(Two):
    resizes = True


def images(count: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(size: int = 8) -> Estimate:
    return Estimate(images(size=size, seed=1).requires_grad_(), images(size=size))


def test_the_squared_error_written_out():
    space, est = Two(), pair()
    found = Metric(space, None)(est.detach())
    for k in range(3):
        layers = zip(space(est.x0[k : k + 1]), space(est.x0_hat.detach()[k : k + 1]), strict=True)
        expected = sum(float(((a.double() - b.double()) ** 2).mean()) for a, b in layers)
        assert float(found[k]) == pytest.approx(expected, rel=1e-5)


def test_resized_first_and_the_target_without_a_graph():
    space, est = Two(), pair()
    found = Metric(space, 20)(est)
    assert space.calls == [(20, False), (20, True)]
    expected = Metric(space, None)(Estimate(resized(est.x0_hat, 20), resized(est.x0, 20)))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert est.x0_hat.grad is not None and all((row != 0).any() for row in est.x0_hat.grad)
    assert Metric(Two()).space.size == 224  # pyright: ignore[reportAttributeAccessIssue]


def test_a_space_with_a_size_of_its_own_is_not_resized_for():
    space = Own()
    Metric(space)(pair())
    assert space.calls == [(8, False), (8, True)]


def test_laws():
    objective, x = Metric(Two(), 12), images()
    assert torch.equal(objective(Estimate(x.clone(), x)), torch.zeros(3))
    far, near = objective(Estimate(-x, x)), objective(Estimate(0.9 * x, x))
    assert (far > near).all() and (near > 0).all()
    torch.testing.assert_close(objective(Estimate(x, -x)), far)
    torch.testing.assert_close(objective(Estimate(-x.flip(0), x.flip(0))), far.flip(0))


@pytest.mark.parametrize("trunk", ["alex", "vgg16"])
def test_the_gradient_is_finite_at_the_truth(trunk):
    x = images(1).requires_grad_()
    Metric(Lpips(trunk, weights="random", pooling="average"), 32)(Estimate(x, images(1))).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_features_of_known_targets_give_the_same():
    space, est = Two(), pair()
    objective = Metric(space, 12)
    expected = objective(est)
    known = objective.of(est.x0)
    assert space.calls[-1] == (12, False)
    space.calls.clear()
    assert torch.equal(objective.between(known, est), expected)
    assert space.calls == [(12, True)], "the target was read again"
    with pytest.raises(ValueError, match="of 3 targets do not belong to an estimate of 2"):
        objective.between(known, est.select(torch.tensor([True, True, False])))


def test_terms_of_one_objective_compute_it_once():
    space, est = Two(), pair()
    objective = Metric(space, 12)
    for term in (Term("a", objective, 0.1), Term("b", objective)):
        term(est)
    assert len(space.calls) == 2


def test_a_gate_comes_before_the_network():
    space, est = Two(), pair()
    loss = Term("metric", Metric(space, 12), keep=lambda e: torch.zeros(len(e), dtype=torch.bool))(est)
    assert float(loss.detach()) == 0 and not space.calls


@pytest.mark.parametrize("scale", [127.5, 2.0])
def test_targets_of_another_range_are_refused(scale):
    x = images()
    x[0, 0, 0, 0] = 1.0
    objective = Metric(Two(), 12)
    objective(Estimate(5 * x, x))  # an output may be anywhere
    with pytest.raises(ValueError, match=rf"metric two expects images in \[-1, 1\], got values up to {scale:g}"):
        objective(Estimate(x, x * scale))
    with pytest.raises(ValueError, match=r"expects images in \[-1, 1\]"):
        objective.of(x * scale)
    with pytest.raises(ValueError, match="got values up to nan"):
        objective(Estimate(x, x * float("nan")))


def test_other_mistakes_are_explained():
    x = images()
    with pytest.raises(ValueError, match="of 3 channels, got 4; latents are decoded first"):
        Metric(Two())(Estimate(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)))
    with pytest.raises(ValueError, match="at least 4 x 4, got 3 x 3"):
        Metric(Two(), None)(Estimate(images(size=3), images(size=3)))
    assert Metric(Two(), 12)(Estimate(images(size=3), images(size=3))).shape == (3,)
    with pytest.raises(ValueError, match="needs images of 4 pixels or more, got the size 3"):
        Metric(Two(), 3)
    on = Lpips("squeeze", weights="random", on=Pixels())
    with pytest.raises(ValueError, match="squeeze stands on another"):
        Metric(on)
    assert Metric(on, None)(Estimate(images(2, 32), images(2, 32))).tolist() == [0, 0]
    with pytest.raises(ValueError, match="1 pixel or more"):
        Metric(Two(), 0)
    with pytest.raises(ValueError, match="unpaired: use Mmd"):
        Metric(Pixels(), None)(Estimate(x, x, paired=False))
    with pytest.raises(ValueError, match="its own target"):
        Metric(Pixels(), None)(Estimate(x, x[:2]))


def test_the_record_of_what_was_trained_against_has_the_space_and_no_other():
    assert {space.name for space in spaces_behind(Metric(Two()))} == {"two"}
    assert {space.name for space in spaces_behind(Metric(Lpips("squeeze", weights="random")))} == {"squeeze"}
