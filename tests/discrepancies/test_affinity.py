"""Affinities: their laws, their gradients where roots and norms have none, and what autocast must not do to them."""

import pytest
import torch

from percepta.discrepancies.affinity import affinity, affinity_correlation, affinity_gap, squared_distances

RELATIONS = ("cosine", "euclidean", "kernel")
DISTANCES = ("l2", "l1")


def rows(n=6, d=5, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain(x, relation):
    """Pair by pair, as one would say it."""
    n = len(x)
    apart = [[(x[i] - x[j]).square().sum() for j in range(n)] for i in range(n)]
    mean = sum(apart[i][j] for i in range(n) for j in range(n) if i != j) / (n * n - n)
    root = sum(apart[i][j].sqrt() for i in range(n) for j in range(n) if i != j) / (n * n - n)
    by = {
        "cosine": lambda i, j: x[i] @ x[j] / (x[i].norm() * x[j].norm()),
        "euclidean": lambda i, j: apart[i][j].sqrt() / root,
        "kernel": lambda i, j: (-apart[i][j] / (2 * mean)).exp(),
    }[relation]
    return torch.stack([torch.stack([by(i, j) for j in range(n)]) for i in range(n)])


@pytest.mark.parametrize("relation", RELATIONS)
def test_an_affinity_is_the_plain_one(relation):
    torch.testing.assert_close(affinity(rows(), relation), plain(rows(), relation), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(
        affinity(rows(dtype=torch.float32), relation).double(), plain(rows(), relation), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_gap_is_the_plain_one(distance):
    a, b, eta = plain(rows(), "cosine"), plain(rows(seed=1), "cosine"), torch.linspace(0.5, 8, 6, dtype=torch.float64)
    n, total = len(a), 0.0
    for i in range(n):
        for j in range(n):
            gap = abs(float(a[i, j] - b[i, j]))
            total += float(eta[i] * eta[j]) ** 0.5 * (gap**2 if distance == "l2" else gap)
    assert float(affinity_gap(a, b, distance, eta)) == pytest.approx(total / n**2, rel=1e-12)
    same = affinity_gap(a, b, distance, torch.full((n,), 3.0, dtype=torch.float64))
    assert float(same) == pytest.approx(float(affinity_gap(a, b, distance, 3.0)), rel=1e-12)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_zero_at_the_truth_and_nowhere_near_it(relation, distance):
    assert affinity_gap(affinity(rows(), relation), affinity(rows(), relation), distance) == 0
    assert affinity_gap(affinity(rows(), relation), affinity(rows(seed=1), relation), distance) > 1e-3


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_order_and_the_scale_change_nothing(relation):
    a, b = rows(seed=1), rows(seed=2)
    gap = affinity_gap(affinity(a, relation), affinity(b, relation))
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(affinity_gap(affinity(a[order], relation), affinity(b[order], relation)), gap, rtol=1e-12, atol=0)
    for factor in (1e-2, 7.0, 1e4):
        torch.testing.assert_close(affinity_gap(affinity(a, relation), affinity(factor * b, relation)), gap, rtol=1e-3, atol=0)
        torch.testing.assert_close(affinity_gap(affinity(factor * a, relation), affinity(b, relation)), gap, rtol=1e-3, atol=0)


def test_a_cosine_gap_is_at_most_four():
    a = torch.ones(6, 1, dtype=torch.float64)
    for seed in range(20):
        found = affinity_gap(affinity(rows(d=2, seed=seed)), affinity(rows(d=2, seed=seed + 99)), "l2", 2.5)
        assert 0 <= found <= 4 * 2.5
    signs = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)[:, None]
    assert float(affinity_gap(affinity(a), affinity(signs))) == pytest.approx(4 * 18 / 36)  # half of the pairs as far as can be


@pytest.mark.parametrize("relation", RELATIONS)
def test_gradients_are_those_of_finite_differences(relation):
    real = affinity(rows(seed=1), relation)
    assert torch.autograd.gradcheck(lambda x: affinity_gap(real, affinity(x, relation)), rows(seed=2).requires_grad_())
    eta = torch.linspace(0.5, 8, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: affinity_gap(real, affinity(x, relation), "l1", eta), rows(seed=2).requires_grad_())
    # both sides at once, as a critic has them
    assert torch.autograd.gradcheck(
        lambda w: affinity_gap(affinity(rows(seed=1) @ w, relation), affinity(rows(seed=2) @ w, relation)),
        rows(5, 4, seed=5).requires_grad_(),
    )


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_and_zero_rows_have_finite_values_and_gradients(relation, dtype):
    for odd in ("equal", "zero", "all equal", "all zero", "one", "none"):
        x = rows(dtype=dtype)
        if odd == "equal":
            x[1] = x[4] = x[0]
        elif odd == "zero":
            x[2] = 0
        elif odd.startswith("all"):
            x[:] = x[0].clone() if odd == "all equal" else 0
        else:
            x = x[:1] if odd == "one" else x[:0]
        real = affinity(rows(len(x), seed=1, dtype=dtype), relation)
        x.requires_grad_()
        found = affinity(x, relation)
        gap = affinity_gap(real, found)
        gap.backward()
        assert bool(found.isfinite().all()) and bool(gap.isfinite()) and bool(x.grad.isfinite().all()), odd
    assert affinity(rows()[[0, 0, 1]], "euclidean")[0, 1] < 1e-6
    torch.testing.assert_close(affinity(rows()[[0, 0, 1]], "kernel")[0, 1].item(), 1.0)


@pytest.mark.parametrize("relation", ["euclidean", "kernel"])
def test_two_equal_rows_pull_with_the_gradient_of_the_others(relation):
    """Their own pair has no direction: what is left is that of the pairs with the rest, as finite differences of those give it."""
    x, real = rows(5, 3), affinity(rows(5, 3, seed=1), relation)
    x[1] = x[0]
    leaf = x.clone().requires_grad_()
    affinity_gap(real, affinity(leaf, relation)).backward()
    step = 1e-6
    for place in ((2, 0), (3, 1), (4, 2)):  # of rows that are nobody's equal
        up, down = x.clone(), x.clone()
        up[place] += step
        down[place] -= step
        slope = (affinity_gap(real, affinity(up, relation)) - affinity_gap(real, affinity(down, relation))) / (2 * step)
        assert float(leaf.grad[place]) == pytest.approx(float(slope), rel=1e-5, abs=1e-9)
    # a move of both together is smooth for a kernel, and of either alone; for distances the pair's own kink is left out
    if relation == "kernel":
        assert torch.autograd.gradcheck(lambda y: affinity_gap(real, affinity(y, relation)), x.clone().requires_grad_())


def test_distances_far_from_the_origin_keep_their_digits():
    x = rows(8, 4, dtype=torch.float32)
    far = (x + 1000).double()
    expected = (far[:, None] - far[None]).square().sum(-1)
    torch.testing.assert_close(squared_distances(x + 1000).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(squared_distances(x).diagonal(), torch.zeros(8))


@pytest.mark.parametrize("relation", RELATIONS)
def test_autocast_rounds_no_affinity(relation):
    x = rows(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, half = affinity(x, relation), affinity(x.bfloat16(), relation)
    assert torch.equal(found, affinity(x, relation))
    assert half.dtype == torch.float32


def test_a_correlation_is_pearsons_of_the_entries_beside_the_diagonal():
    a, b = affinity(rows(seed=1)), affinity(rows(seed=2))
    off = ~torch.eye(6, dtype=torch.bool)
    expected = torch.corrcoef(torch.stack([a[off], b[off]]))[0, 1]
    torch.testing.assert_close(affinity_correlation(a, b), expected)
    torch.testing.assert_close(affinity_correlation(a, a).item(), 1.0)
    torch.testing.assert_close(affinity_correlation(a, 1 - 3 * a).item(), -1.0)
    assert affinity_correlation(a, torch.zeros_like(a)) == 0
    assert affinity_correlation(a[:2, :2], b[:2, :2]) == 0


def test_what_cannot_be():
    with pytest.raises(ValueError, match="a relation is cosine, euclidean or kernel, got 'dot'"):
        affinity.__wrapped__(rows(), "dot") if hasattr(affinity, "__wrapped__") else affinity(rows(), "dot")
    with pytest.raises(ValueError, match="a distance is l2 or l1, got 'l3'"):
        affinity_gap.__wrapped__(rows(6, 6), rows(6, 6), "l3") if hasattr(affinity_gap, "__wrapped__") else None
