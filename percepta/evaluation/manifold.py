"""How far two sets of features cover each other, by balls around neighbours; and plain nearest neighbours.

    precision   share of generated rows inside some real row's ball (Kynkaanniemi et al. 2019), radius: its k-th real neighbour, k = 3
    recall      share of real rows inside some generated row's ball
    density     (1/k) times the mean number of real balls that a generated row is in (Naeem et al. 2020), k = 5
    coverage    share of real balls with a generated row inside

A row on the edge of a ball is inside for precision and recall (as in torch-fidelity) and outside for density and coverage (as in the
authors' code, which makes density exactly 1 for a set against itself). A row is not its own neighbour, equal copies of it are.

Distances come in blocks from float32 products, |x|^2 - 2 x.y + |y|^2 about a common centre, never all at once: below 1 GB for any number
of rows. What the rounding of that form leaves open is settled by the sum of squared differences of the pair itself in float64: the radii,
and every pair closer to an edge than the rounding could be. So values depend on neither block size, order nor hardware.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from percepta.evaluation.blocks import BLOCK, AnyRows, check_rows, plain_products, product, slices, take

SPARE = 3  # so many more candidates than neighbours are kept, in case rounding has swapped some
AT_ONCE = 2**21  # numbers in memory where pairs are looked at one by one: 8 MiB


def precision_recall(real: AnyRows, fake: AnyRows, k: int = 3, block: int = BLOCK) -> tuple[float, float]:
    """(precision, recall)."""
    _check(k, real=real, fake=fake)
    with plain_products():
        real_balls, fake_balls = _Balls(real, k, block), _Balls(fake, k, block)
        found, covered = torch.zeros(len(fake), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
        for near in _crossing(fake, real, block):
            found[near.rows] |= near.inside(real_balls.radii2[near.columns][None]).any(1).cpu()
            covered[near.columns] |= near.inside(fake_balls.radii2[near.rows][:, None]).any(0).cpu()
    return found.double().mean().item(), covered.double().mean().item()


def density_coverage(real: AnyRows, fake: AnyRows, k: int = 5, block: int = BLOCK) -> tuple[float, float]:
    """(density, coverage). Density can exceed 1."""
    _check(k, real=real)
    check_rows(1, real=real, fake=fake)
    with plain_products():
        balls = _Balls(real, k, block)
        inside, covered = 0, torch.zeros(len(real), dtype=torch.bool)
        for near in _crossing(fake, real, block):
            hits = near.inside(balls.radii2[near.columns][None], edge=False)
            inside += int(hits.sum())
            covered[near.columns] |= hits.any(0).cpu()
    return inside / (k * len(fake)), covered.double().mean().item()


def nearest(
    queries: AnyRows, keys: AnyRows, k: int, block: int = BLOCK
) -> tuple[Float64[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """(distances, indices into keys) of the k nearest keys of each query, nearest first."""
    check_rows(1, queries=queries, keys=keys)
    if not 1 <= k <= len(keys):
        raise ValueError(f"between 1 and {len(keys)} neighbours can be found among {len(keys)} rows, got k = {k}")
    with plain_products():
        best = _Candidates(len(queries), min(k + SPARE, len(keys)))
        for near in _crossing(queries, keys, block):
            best.offer(near.rows, near.d2, near.columns.start)
        d2, indices = best.settled(queries, keys)
    return d2[:, :k].sqrt().numpy(), indices[:, :k].numpy()


def _check(k: int, **sides: AnyRows) -> None:
    if k < 1:
        raise ValueError(f"a ball reaches to the first neighbour or a later one, got k = {k}")
    check_rows(k + 1, **sides)


def _rounding(dims: int) -> float:
    """How far |x|^2 - 2 x.y + |y|^2 in float32 may be off, as a share of |x|^2 + |y|^2: a sum of d products by about eps sqrt(d), the
    norms and the last sums by a few eps."""
    return torch.finfo(torch.float32).eps * (8 + dims**0.5)


class _Pairs:
    """The squared distances of one block of pairs, and how far rounding may have moved each of them."""

    def __init__(self, x: Tensor, y: Tensor, rows: slice, columns: slice, centre: Tensor) -> None:
        self.x, self.y, self.rows, self.columns = x, y, rows, columns
        a, b = x - centre, y - centre
        self.x_norm, self._y_norm = a.square().sum(1, keepdim=True), b.square().sum(1)
        self.d2 = product(a.mul_(-2), b, self._y_norm).add_(self.x_norm)

    def inside(self, radii2: Tensor, edge: bool = True) -> Tensor:
        """Which pairs are closer than their (broadcast) squared radius; `edge`: or as close."""
        gap = self.d2 - radii2.to(self.d2)
        hits = gap < 0
        open_ = gap.abs_() <= (self.x_norm + self._y_norm).mul_(_rounding(self.x.shape[1]))
        i, j = torch.nonzero(open_, as_tuple=True)
        limits = radii2.expand(self.d2.shape)
        for part in slices(len(i), max(1, AT_ONCE // self.x.shape[1])):
            at = i[part], j[part]
            exact, limit = _squared(self.x[at[0]], self.y[at[1]]), limits[at[0].cpu(), at[1].cpu()].to(self.x.device)
            hits[at] = exact <= limit if edge else exact < limit
        return hits


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 over the last axis: differences in float32, their squares summed in float64. The same number with x and y exchanged."""
    return (x - y).square().sum(-1, dtype=torch.float64)


def _crossing(x: AnyRows, y: AnyRows, block: int) -> "Iterator[_Pairs]":
    """All blocks of pairs between two sides."""
    centre = take(y, slice(0, block)).mean(0)
    for rows in slices(len(x), block):
        left = take(x, rows)
        for columns in slices(len(y), block):
            yield _Pairs(left, take(y, columns), rows, columns, centre)


class _Candidates:
    """The few keys that came nearest to each query so far, by float32 distances."""

    def __init__(self, count: int, kept: int) -> None:
        self.d2 = torch.full((count, kept), torch.inf)
        self.indices = torch.zeros(count, kept, dtype=torch.int64)

    def offer(self, rows: slice, d2: Tensor, first: int) -> None:
        """Distances of these queries to the keys from `first` on."""
        kept = self.d2.shape[1]
        found, at = d2.topk(min(kept, d2.shape[1]), dim=1, largest=False, sorted=False)
        d2, indices = torch.cat([self.d2[rows], found.cpu()], 1), torch.cat([self.indices[rows], at.cpu() + first], 1)
        self.d2[rows], best = d2.topk(kept, dim=1, largest=False, sorted=False)
        self.indices[rows] = indices.gather(1, best)

    def settled(self, queries: AnyRows, keys: AnyRows) -> tuple[Tensor, Tensor]:
        """Exact squared distances of the candidates, nearest first, and their indices; among equals the earlier key."""
        indices = self.indices.sort(1).values
        d2 = torch.empty(indices.shape, dtype=torch.float64)
        for part in slices(len(indices), max(1, AT_ONCE // (indices.shape[1] * queries.shape[1]))):
            near = take(keys, indices[part].flatten()).unflatten(0, indices[part].shape)
            d2[part] = _squared(take(queries, part)[:, None], near).cpu()
        d2, order = d2.sort(dim=1, stable=True)
        return d2, indices.gather(1, order)


class _Balls:
    """radii2: the squared distance of every row to its k-th neighbour in its own set."""

    def __init__(self, rows: AnyRows, k: int, block: int) -> None:
        centre = take(rows, slice(0, block)).mean(0)
        best = _Candidates(len(rows), min(k + SPARE, len(rows) - 1))
        norms = torch.empty(len(rows))
        parts = slices(len(rows), block)
        for n, i in enumerate(parts):
            left = take(rows, i)
            for j in parts[n:]:  # distances are symmetric: a block below the diagonal is the transpose of one above
                near = _Pairs(left, left if i == j else take(rows, j), i, j, centre)
                if i == j:
                    near.d2.fill_diagonal_(torch.inf)
                    norms[i] = near.x_norm[:, 0].cpu()
                else:
                    best.offer(j, near.d2.T, i.start)
                best.offer(i, near.d2, j.start)
        self.radii2 = _settled_radii(best, rows, k, norms)


def _settled_radii(best: _Candidates, rows: AnyRows, k: int, norms: Tensor) -> Tensor:
    """The k-th of the exact distances. Only candidates that rounding could exchange with the k-th are worked out again, most often it alone."""
    near, order = best.d2.sort(dim=1)
    keys = best.indices.gather(1, order)
    slack = (norms[:, None] + norms[keys]).amax(1, keepdim=True) * _rounding(rows.shape[1])
    d2 = near.double()
    i, j = torch.nonzero((near - near[:, k - 1 : k]).abs() <= 2 * slack, as_tuple=True)
    for part in slices(len(i), max(1, AT_ONCE // rows.shape[1])):
        at = i[part], j[part]
        d2[at] = _squared(take(rows, at[0]), take(rows, keys[at])).cpu()
    return d2.sort(dim=1).values[:, k - 1]
