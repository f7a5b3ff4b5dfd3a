"""Distances of features: closed forms, and gradients against finite differences in float64."""

import pytest
import torch

from percepta.discrepancies.dists import dists
from percepta.discrepancies.layers import squared_error
from percepta.discrepancies.lpips import EPS, lpips

torch.set_num_threads(1)


def features(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, c, 3, side, generator=generator, dtype=torch.float64).to(dtype) for c, side in ((4, 2), (5, 3))]


def heads() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.rand(c, generator=generator, dtype=torch.float64) for c in (4, 5)]


def plain_lpips(x, y, w):
    """Left to automatic differentiation."""
    total = 0
    for a, b, head in zip(x, y, w, strict=True):
        u = a / (torch.linalg.vector_norm(a, dim=1, keepdim=True) + EPS)
        v = b / (torch.linalg.vector_norm(b, dim=1, keepdim=True) + EPS)
        total = total + ((u - v) ** 2 * head[:, None, None]).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("sides", ["x", "y", "xy"])
def test_the_written_gradient_of_lpips_is_the_automatic_one(sides):
    pairs = [(features(0), features(1)) for _ in range(2)]
    for (x, y), function in zip(pairs, (lpips, plain_lpips), strict=True):
        for one in (x if "x" in sides else []) + (y if "y" in sides else []):
            one.requires_grad_()
        (function(x, y, heads()) * torch.tensor([1.0, -3.0])).sum().backward()
    for ours, truth in zip(*([one.grad for side in pair for one in side] for pair in pairs), strict=True):
        assert (ours is None) == (truth is None)
        if ours is not None:
            torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-14)


def test_lpips_against_finite_differences():
    x, y = features(0)[:1], features(1)[:1]
    assert torch.autograd.gradcheck(lambda a, b: lpips([a], [b], heads()[:1]), (x[0].requires_grad_(), y[0].requires_grad_()))


def test_lpips_of_16_bits_is_summed_in_32():
    x, y = features(0, torch.bfloat16), features(1, torch.bfloat16)
    x[0].requires_grad_()
    found = lpips(x, y, heads())
    assert found.dtype == torch.float32
    exact = plain_lpips([a.detach().double() for a in x], [b.double() for b in y], heads())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    found.sum().backward()
    assert x[0].grad is not None and x[0].grad.dtype == torch.bfloat16


def test_autocast_does_not_round_lpips():
    x, y = features(0, torch.float32), features(1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = lpips(x, y, heads())
    assert torch.equal(found, lpips(x, y, heads()))


def test_squared_error_written_out():
    x, y = features(0), features(1)
    expected = sum(((a - b) ** 2).mean((1, 2, 3)) for a, b in zip(x, y, strict=True))
    torch.testing.assert_close(squared_error(x, y), expected)
    assert squared_error([one.bfloat16() for one in x], [one.bfloat16() for one in y]).dtype == torch.float32
    with pytest.raises(ValueError, match="got 2 and 1"):
        squared_error(x, y[:1])
    with pytest.raises(ValueError, match="one shape"):
        squared_error(x, y[::-1])


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), torch.ones(9, dtype=torch.float64)
    return a / (a.sum() + b.sum()), b / (a.sum() + b.sum())


def test_dists_laws():
    x, y = features(0), features(1)
    a, b = weights()
    torch.testing.assert_close(dists(x, x, a, b), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    found = dists(x, y, a, b)
    assert (found > 0).all() and (found <= 2).all()
    torch.testing.assert_close(dists(y, x, a, b), found)
    moved = [one.flip(2, 3) for one in x]  # the same texture at other places: only structure differs
    nothing = torch.zeros(9, dtype=torch.float64)
    torch.testing.assert_close(dists(moved, x, a, nothing), dists(x, x, a, nothing))
    assert (dists(moved, x, nothing, b) > 0.1).all()


def test_dists_against_finite_differences():
    a, b = weights()
    x, y = features(0), features(1)
    assert torch.autograd.gradcheck(lambda one: dists([one, x[1]], y, a, b), (x[0].requires_grad_(),))
    constant = torch.ones(2, 9, 4, 4, requires_grad=True)
    dists([constant], [torch.ones(2, 9, 4, 4)], a, b).sum().backward()
    assert constant.grad is not None and constant.grad.isfinite().all()
    with pytest.raises(ValueError, match="a weight per channel"):
        dists(x, y, a[:8], b[:8])
