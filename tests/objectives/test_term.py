"""Terms: the gate acts before features, the mean is over what was drawn, a weight is per sample."""

import pytest
import torch
from torch import Tensor

from percepta.estimate import Estimate
from percepta.formulation import Noised
from percepta.objectives import L1, AbstractPerBatch, AbstractPerSample, Denoising, Kl, PyramidL1, Term
from percepta.objectives.term import per_sample
from percepta.path import Cosine
from percepta.spaces import Pixels, Space
from percepta.spaces.trunks import Trunk


def number(x: torch.Tensor) -> float:
    return x.detach().item()


class Counting(Space):
    def __init__(self) -> None:
        super().__init__()
        self.rows = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.rows.append(len(x))
        return (x,)


class InSpace(AbstractPerSample):
    """The squared difference of features."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, est: Estimate) -> Tensor:
        (real,), (fake,) = est.features(self.space)
        return per_sample((real - fake) ** 2)


class Centre(AbstractPerBatch):
    def __call__(self, est: Estimate) -> Tensor:
        return ((est.x0_hat.mean(0) - est.x0.mean(0)) ** 2).mean()


def estimate(rows=4, dtype=torch.float32, size=8):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(rows, 3, size, size, generator=generator, dtype=dtype)
    x0_hat = torch.randn(rows, 3, size, size, generator=generator, dtype=dtype).requires_grad_()
    t = torch.linspace(0.1, 0.9, rows, dtype=torch.float64)
    return Estimate(x0_hat, x0, True, Noised(x0, x0, t, x0), Cosine())


def test_a_gate_is_applied_before_features_and_the_sum_is_divided_by_the_samples_drawn():
    est, space = estimate(), Counting()
    term = Term("near", InSpace(space), 3.0, keep=lambda e: e.t < 0.5)
    value = term(est)
    assert space.rows == [2, 2]
    each = per_sample((est.x0 - est.x0_hat) ** 2)
    assert number(value) == pytest.approx(3 * number(each[:2].sum()) / 4, rel=1e-6)
    value.backward()
    assert est.x0_hat.grad[:2].abs().min() > 0
    assert number(est.x0_hat.grad[2:].abs().max()) == 0


def test_a_gate_that_keeps_nothing_computes_no_feature_and_keeps_the_graph():
    est, space = estimate(), Counting()
    value = Term("none", InSpace(space), keep=lambda e: e.t > 2)(est)
    assert space.rows == []
    assert number(value) == 0
    value.backward()
    assert number(est.x0_hat.grad.abs().max()) == 0


def test_a_weight_is_per_sample_and_is_asked_for_the_kept_samples_only():
    est = estimate()
    each = per_sample((est.x0 - est.x0_hat) ** 2)
    weighted = Term("w", Denoising(), weight=lambda e: e.t)
    assert number(weighted(est)) == pytest.approx(number((each * est.t).sum()) / 4, rel=1e-6)
    both = Term("w", Denoising(), weight=lambda e: e.t, keep=lambda e: e.t > 0.5)
    assert number(both(est)) == pytest.approx(number((each * est.t)[2:].sum()) / 4, rel=1e-6)


def test_order_of_the_batch_does_not_matter():
    est = estimate(dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    turned = Estimate(est.x0_hat[order], est.x0[order], True, Noised(*(v[order] for v in est.noised)), est.path)
    for term in (Term("a", Denoising(), weight=lambda e: e.t, keep=lambda e: e.t > 0.3), Term("b", Centre())):
        assert number(term(est)) == pytest.approx(number(term(turned)), rel=1e-12)


def test_a_term_of_the_set_cannot_be_weighted_per_sample():
    assert number(Term("centre", Centre(), 2.0)(estimate())) > 0
    with pytest.raises(ValueError, match="'centre': Centre judges the batch as a whole"):
        Term("centre", Centre(), weight=lambda e: e.t)


def test_per_sample_is_float32_or_better():
    assert per_sample(torch.ones(2, 3, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32
    assert per_sample(torch.ones(2, 3, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert torch.equal(per_sample(torch.tensor([[1.0, 3.0], [5.0, 5.0]])), torch.tensor([2.0, 5.0]))


def test_l1_and_squared_error_are_zero_at_the_truth_and_what_they_say_elsewhere():
    x = torch.randn(2, 3, 4, 4)
    assert number(L1()(Estimate(x, x)).abs().max()) == number(Denoising()(Estimate(x, x)).abs().max()) == 0
    assert L1()(Estimate(x + 0.5, x)).tolist() == pytest.approx([0.5, 0.5], rel=1e-6)
    assert Denoising()(Estimate(x + 0.5, x)).tolist() == pytest.approx([0.25, 0.25], rel=1e-5)


def test_kl_is_that_of_two_normal_distributions():
    mean, std = torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.rand(3, 4, 2, 2, dtype=torch.float64) + 0.1
    x = torch.zeros(3, 3, 8, 8)
    found = Kl()(Estimate(x, x, taps={"mean": mean, "std": std}))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).flatten(1).mean(1)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert number(Kl()(Estimate(x, x, taps={"mean": mean * 0, "std": std * 0 + 1})).abs().max()) == 0


@pytest.fixture(scope="module")
def trunk():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Trunk("squeeze", taps=(1, 4), weights="random")


def test_the_pyramid_is_zero_at_the_truth_and_grows_with_the_difference(trunk):
    x = torch.rand(2, 3, 40, 40) * 2 - 1
    loss = PyramidL1(trunk)
    assert loss(Estimate(x, x)).tolist() == [0.0, 0.0]
    small, large = (number(loss(Estimate(x + s * torch.randn_like(x), x)).mean()) for s in (0.01, 0.5))
    assert 0 < small < large


def test_the_pyramid_is_the_sum_over_its_scales_and_layers(trunk):
    x, y = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40)
    shrink = torch.nn.functional.avg_pool2d

    def at(a, b):
        with torch.no_grad():
            return sum(per_sample((f - g).abs()) for f, g in zip(trunk(a), trunk(b), strict=True))

    expected = at(x, y) + at(shrink(x, 2), shrink(y, 2))
    assert torch.allclose(PyramidL1(trunk, 2)(Estimate(x, y)), expected, rtol=1e-5)
    assert torch.allclose(PyramidL1(trunk, 1)(Estimate(x, y)), at(x, y), rtol=1e-5)
    # 40, 20, and no 10: the space reads 17 pixels and more
    assert torch.allclose(PyramidL1(trunk, 4)(Estimate(x, y)), expected, rtol=1e-5)


def test_the_pyramid_moves_what_it_judges_and_not_its_space(trunk):
    x0_hat = torch.rand(1, 3, 40, 40, requires_grad=True)
    PyramidL1(trunk, 2)(Estimate(x0_hat, torch.rand(1, 3, 40, 40))).sum().backward()
    assert number(x0_hat.grad.abs().max()) > 0
    assert all(p.grad is None and not p.requires_grad for p in trunk.parameters())
    with pytest.raises(ValueError, match="at least one scale"):
        PyramidL1(trunk, 0)


def test_images_that_are_too_small_are_refused_by_name(trunk):
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="Trunk needs at least 17 x 17, got 8 x 8"):
        PyramidL1(trunk)(Estimate(x, x))
    assert number(PyramidL1(Pixels(), 2)(Estimate(x, x)).max()) == 0
